// Tensor maps: how the copy engine of Hopper and later sees a tensor.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/call.h"

namespace parallax::cuda {

/// Sizes of a tensor that is cut into boxes of box_tokens rows by 64 columns.
struct MapShape {
  int64_t head_dim, num_tokens, num_heads, num_batches;
  int box_tokens;
};

/// Why the copy engine cannot read such a tensor, or null: addresses and strides must be multiples
/// of 16 bytes, strides of dimensions with several entries positive. `size_of_element` is 2.
const char* map_refusal(const Operand<const void>& tensor, const MapShape& shape);

/// The map [D, tokens, heads, batches] of a 16-bit tensor with the 128-byte swizzle. What a box
/// holds beyond the tensor becomes zeros. Throws Error if the driver refuses it.
CUtensorMap make_tensor_map(const Operand<const void>& tensor, const MapShape& shape, DType dtype);

}  // namespace parallax::cuda
