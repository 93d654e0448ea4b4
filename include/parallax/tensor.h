// Non-owning strided views: how tensors reach the library.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "parallax/dtype.h"
#include "parallax/error.h"

namespace parallax {

enum class DeviceType : uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

/// A view of up to four dimensions over memory that the caller owns. Strides count elements, may be
/// zero or negative for inputs, and an undefined view (rank 0) stands for an absent argument.
template <typename Pointee>
struct BasicTensorView {
  static constexpr int kMaxRank = 4;

  Pointee* data = nullptr;
  DType dtype = DType::kFloat32;
  Device device;
  int rank = 0;
  std::array<int64_t, kMaxRank> sizes{};
  std::array<int64_t, kMaxRank> strides{};

  bool defined() const { return rank > 0; }
  int64_t size(int dim) const { return sizes[static_cast<size_t>(dim)]; }
  int64_t stride(int dim) const { return strides[static_cast<size_t>(dim)]; }
  int64_t num_elements() const {
    int64_t count = rank > 0 ? 1 : 0;
    for (int dim = 0; dim < rank; ++dim) count *= size(dim);
    return count;
  }

  /// A writable view is also a read-only one.
  operator BasicTensorView<const void>() const
    requires(!std::is_const_v<Pointee>)
  {
    return {data, dtype, device, rank, sizes, strides};
  }
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

namespace internal {

template <typename T>
constexpr DType dtype_of() {
  using Element = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<Element, float>)
    return DType::kFloat32;
  else if constexpr (std::is_same_v<Element, double>)
    return DType::kFloat64;
  else if constexpr (std::is_same_v<Element, Float16>)
    return DType::kFloat16;
  else if constexpr (std::is_same_v<Element, BFloat16>)
    return DType::kBFloat16;
  else if constexpr (std::is_same_v<Element, int32_t>)
    return DType::kInt32;
  else
    static_assert(sizeof(Element) == 0, "no parallax::DType for this type");
}

}  // namespace internal

/// A CPU view of `data` with the given sizes; row-major contiguous unless strides are given.
/// A view of const data is a ConstTensorView.
template <typename T>
auto make_view(T* data, std::initializer_list<int64_t> sizes,
               std::initializer_list<int64_t> strides = {}) {
  using View = std::conditional_t<std::is_const_v<T>, ConstTensorView, TensorView>;
  PLX_CHECK(sizes.size() >= 1 && sizes.size() <= View::kMaxRank,
            "make_view: rank must be 1 to 4, got ", sizes.size());
  PLX_CHECK(strides.size() == 0 || strides.size() == sizes.size(), "make_view: ", sizes.size(),
            " sizes but ", strides.size(), " strides");
  View view;
  view.data = data;
  view.dtype = internal::dtype_of<T>();
  view.rank = static_cast<int>(sizes.size());
  int64_t contiguous_stride = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    view.sizes[dim] = sizes.begin()[dim];
    view.strides[dim] = strides.size() != 0 ? strides.begin()[dim] : contiguous_stride;
    contiguous_stride *= view.sizes[dim];
  }
  return view;
}

}  // namespace parallax
