// The rows of tensors as row kernels get them. Plain structs, for the reason that cpu/kernels.h
// gives.
//
// Legend: B sequences, N tokens, H heads, D elements of a row; row = one (b, n, h), numbered
// (b N + n) H + h. Dimensions that a tensor lacks have size 1.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "parallax/dtype.h"

namespace parallax::core {

/// The rows of a tensor [B, N, H, D] whose elements lie side by side along D. `dtype` is float32,
/// bfloat16 or float16.
template <typename Pointee>
struct GridTensor {
  Pointee* data;
  DType dtype;
  int64_t strides[3];  // of b, n and h, in elements
};

struct Grid {
  int64_t sizes[3];  // B, N, H
  int dim;           // D
};

}  // namespace parallax::core
