// The vocabulary of validate.cc: checks of one named tensor argument.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallax/tensor.h"

namespace parallax::core {

/// A tensor under the name that the public structs give it.
struct Argument {
  std::string name;
  ConstTensorView view;
};

/// "[2, 129, 8, 64]"
std::string shape_text(const ConstTensorView& view);

/// In an expected shape: any size will do.
inline constexpr int64_t kAnySize = -1;

/// A shape that an argument must have, with the words that explain it: "[B, Tk, Hkv, D]".
struct ExpectedShape {
  std::vector<int64_t> sizes;
  std::string legend;
};

/// Defined, sizes not negative, and memory behind it, aligned to its element, unless it is empty.
void check_present(const Argument& argument);
void check_rank(const Argument& argument, std::span<const int> allowed, std::string_view legend);
void check_shape(const Argument& argument, const ExpectedShape& expected);
void check_dtype(const Argument& argument, DType expected, std::string_view reason);
/// float32, bfloat16, float16 or float64.
void check_floating(const Argument& argument);
/// Stride 1 in the last dimension, unless that has one element or the tensor none.
void check_innermost_stride(const Argument& argument);
/// Lengths, boundaries or page numbers: int32 without gaps along the last dimension.
void check_index_vector(const Argument& argument, const ExpectedShape& expected);
/// No element at two indices: strides are positive and nest, as in permuted or sliced dense memory.
void check_writable(const Argument& argument);
/// All on the device of the first.
void check_devices(std::span<const Argument> arguments);
/// No output shares memory with an input or another output. Interleaved strided views, where
/// telling would need a search, pass.
void check_overlaps(std::span<const Argument> inputs, std::span<const Argument> outputs);
/// What holds for the tensors of any call: one device, outputs writable and apart.
void check_together(const std::vector<Argument>& inputs, const std::vector<Argument>& outputs);

}  // namespace parallax::core
