// SPDX-License-Identifier: Apache-2.0
#include "support/host_tensor.h"

#include <cstring>
#include <utility>

namespace parallax::testing {
namespace {

constexpr int64_t kGuardBytes = 256;
constexpr std::byte kPoison{0xff};

template <typename Body>
auto with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat64:
      return body(double{});
    case DType::kFloat16:
      return body(Float16{});
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kInt32:
      return body(int32_t{});
    case DType::kFloat32:
      break;
  }
  return body(float{});
}

/// From double in one rounding. A plain cast goes through float; the double is moved off the float
/// tie first (round to odd), so that the second rounding cannot err.
template <typename T>
T narrow(double value) {
  if constexpr (std::is_same_v<T, double> || std::is_same_v<T, float> ||
                std::is_same_v<T, int32_t>) {
    return static_cast<T>(value);
  } else {
    auto single = static_cast<float>(value);
    const double back = single;
    if (back != value && back == back) {
      auto bits = std::bit_cast<uint32_t>(single);
      const bool away = (back > value) == (value > 0);  // |single| > |value|
      if ((bits & 1u) == 0) bits = away ? bits - 1 : bits + 1;
      single = std::bit_cast<float>(bits);
    }
    return T(single);
  }
}

}  // namespace

double rounded(DType dtype, double value) {
  return with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>)
      return static_cast<double>(static_cast<float>(narrow<T>(value)));
    else
      return static_cast<double>(narrow<T>(value));
  });
}

HostTensor::HostTensor(DType dtype, std::vector<int64_t> sizes, Layout layout)
    : dtype_(dtype), sizes_(std::move(sizes)), strides_(sizes_.size()) {
  const size_t rank = sizes_.size();
  std::vector<size_t> order(rank);  // innermost first
  for (size_t idx = 0; idx < rank; ++idx) order[idx] = rank - 1 - idx;
  if (layout == Layout::kHeadsFirst && rank >= 3) std::swap(order[1], order[2]);
  int64_t extent = 1;
  for (const size_t dim : order) {
    strides_[dim] = extent;
    extent *= sizes_[dim];
    if (layout == Layout::kPadded) extent += 3;
    if (layout == Layout::kGaps) extent += 16;
  }
  const auto element = static_cast<int64_t>(size_of(dtype));
  const bool is_aligned = layout == Layout::kContiguous || layout == Layout::kGaps;
  origin_bytes_ = kGuardBytes + (is_aligned ? 0 : element);
  storage_.assign(static_cast<size_t>(origin_bytes_ + extent * element + kGuardBytes), kPoison);
}

HostTensor HostTensor::ints(const std::vector<int32_t>& values, std::vector<int64_t> sizes) {
  HostTensor tensor(DType::kInt32, std::move(sizes));
  for (size_t idx = 0; idx < values.size(); ++idx)
    tensor.set(static_cast<int64_t>(idx), values[idx]);
  return tensor;
}

HostTensor HostTensor::of(DType dtype, std::vector<int64_t> sizes,
                          const std::vector<double>& values, Layout layout) {
  HostTensor tensor(dtype, std::move(sizes), layout);
  for (size_t idx = 0; idx < values.size(); ++idx)
    tensor.set(static_cast<int64_t>(idx), values[idx]);
  return tensor;
}

int64_t HostTensor::num_elements() const {
  int64_t count = defined() ? 1 : 0;
  for (const int64_t size : sizes_) count *= size;
  return count;
}

TensorView HostTensor::view() {
  TensorView view;
  if (!defined()) return view;
  view.data = storage_.data() + origin_bytes_;
  view.dtype = dtype_;
  view.rank = static_cast<int>(sizes_.size());
  for (size_t dim = 0; dim < sizes_.size(); ++dim) {
    view.sizes[dim] = sizes_[dim];
    view.strides[dim] = strides_[dim];
  }
  return view;
}

ConstTensorView HostTensor::view() const { return const_cast<HostTensor*>(this)->view(); }

int64_t HostTensor::byte_offset(int64_t idx) const {
  int64_t offset = 0;
  for (size_t dim = sizes_.size(); dim-- > 0;) {
    offset += idx % sizes_[dim] * strides_[dim];
    idx /= sizes_[dim];
  }
  return origin_bytes_ + offset * static_cast<int64_t>(size_of(dtype_));
}

double HostTensor::get(int64_t idx) const {
  const std::byte* const source = storage_.data() + byte_offset(idx);
  return with_type(dtype_, [&](auto value) {
    std::memcpy(&value, source, sizeof value);
    if constexpr (sizeof value == 2)
      return static_cast<double>(static_cast<float>(value));
    else
      return static_cast<double>(value);
  });
}

void HostTensor::set(int64_t idx, double value) {
  std::byte* const target = storage_.data() + byte_offset(idx);
  with_type(dtype_, [&](auto zero) {
    const auto stored = narrow<decltype(zero)>(value);
    std::memcpy(target, &stored, sizeof stored);
    return 0;
  });
}

std::vector<double> HostTensor::values() const {
  std::vector<double> result(static_cast<size_t>(num_elements()));
  for (size_t idx = 0; idx < result.size(); ++idx) result[idx] = get(static_cast<int64_t>(idx));
  return result;
}

void HostTensor::poison() { storage_.assign(storage_.size(), kPoison); }

std::string HostTensor::check_guards() const {
  std::vector<bool> owned(storage_.size(), false);
  const auto element = static_cast<int64_t>(size_of(dtype_));
  for (int64_t idx = 0; idx < num_elements(); ++idx) {
    const int64_t offset = byte_offset(idx);
    for (int64_t byte = 0; byte < element; ++byte) owned[static_cast<size_t>(offset + byte)] = true;
  }
  for (size_t byte = 0; byte < storage_.size(); ++byte)
    if (!owned[byte] && storage_[byte] != kPoison)
      return "written outside the view, at byte " +
             std::to_string(static_cast<int64_t>(byte) - origin_bytes_) + " from its first element";
  return "";
}

bool HostTensor::same_bits(const HostTensor& other) const {
  if (sizes_ != other.sizes_ || dtype_ != other.dtype_) return false;
  for (int64_t idx = 0; idx < num_elements(); ++idx)
    if (std::memcmp(storage_.data() + byte_offset(idx),
                    other.storage_.data() + other.byte_offset(idx), size_of(dtype_)) != 0)
      return false;
  return true;
}

}  // namespace parallax::testing
