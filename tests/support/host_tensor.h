// Tensors for kernel tests: any dtype and strides, surrounded by guard bytes, and full of poison
// until somebody writes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallax/tensor.h"

namespace parallax::testing {

/// How the elements lie in memory. The last dimension always has stride 1.
enum class Layout : uint8_t {
  kContiguous,
  kPadded,      // gaps of odd size after each dimension, so that rows are not aligned
  kGaps,        // gaps of 16 numbers, which keep rows aligned: views that the copy engine takes
  kHeadsFirst,  // the two dimensions before the last swapped in memory, and an odd offset
};

/// All bytes start as 0xff: NaN in every floating point type and -1 as an integer.
class HostTensor {
 public:
  HostTensor() = default;
  HostTensor(DType dtype, std::vector<int64_t> sizes, Layout layout = Layout::kContiguous);
  static HostTensor ints(const std::vector<int32_t>& values, std::vector<int64_t> sizes);
  static HostTensor of(DType dtype, std::vector<int64_t> sizes, const std::vector<double>& values,
                       Layout layout = Layout::kContiguous);

  bool defined() const { return !sizes_.empty(); }
  DType dtype() const { return dtype_; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  int64_t num_elements() const;

  /// Views for a call; undefined if the tensor is.
  TensorView view();
  ConstTensorView view() const;

  /// All bytes, those around the elements included.
  std::span<std::byte> storage() { return storage_; }
  std::span<const std::byte> storage() const { return storage_; }

  /// Elements by their row-major logical index.
  double get(int64_t idx) const;
  void set(int64_t idx, double value);
  std::vector<double> values() const;

  /// Everything back to 0xff.
  void poison();
  /// Empty if every byte outside the view's elements is still 0xff, else what was found.
  std::string check_guards() const;
  /// Whether the view's elements have the same bits.
  bool same_bits(const HostTensor& other) const;

 private:
  int64_t byte_offset(int64_t idx) const;

  DType dtype_ = DType::kFloat32;
  std::vector<int64_t> sizes_, strides_;
  int64_t origin_bytes_ = 0;
  std::vector<std::byte> storage_;
};

/// `value` as it is after a store in `dtype`.
double rounded(DType dtype, double value);

}  // namespace parallax::testing
