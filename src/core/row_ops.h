// RMSNorm, rotary embedding and SwiGLU, forward and backward: the parts of a model between its
// matrix products and attention. What a call of them is, and what every device refuses.
//
// All of them: tensors are float32, bfloat16 or float16, each its own, with 1 to 4 dimensions and
// any strides but 1 in the last, on one device. Computed in float32, rounded once per result.
// Outputs must not overlap anything else. Results and gradients repeat bit for bit: sums over rows
// are added in an order that the shape alone decides.
//
// Legend: N tokens, H heads, D size of the last dimension.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/row_grid.h"
#include "parallax/attention.h"
#include "parallax/tensor.h"

namespace parallax::core {

/// y = rotate(gain x / sqrt(mean(x^2) + eps)) over the last dimension: with a gain RMSNorm, with
/// tables the half-split rotary embedding, dimension i turning with i + D / 2. At least one of
/// them.
struct NormRopeArgs {
  ConstTensorView x{};           ///< [.., D], [.., N, H, D] with tables
  ConstTensorView gain{};        ///< [D], or undefined: nothing is normalised
  ConstTensorView cos{}, sin{};  ///< float32 [N, D / 2], or undefined: nothing is rotated
  double eps = 0.0;
  TensorView y{};  ///< the shape of x
  Execution execution{};
};

/// The gradients of sum(dy y).
struct NormRopeBackwardArgs {
  ConstTensorView dy{};  ///< the shape of x
  ConstTensorView x{}, gain{}, cos{}, sin{};
  double eps = 0.0;
  TensorView dx{};      ///< the shape of x
  TensorView d_gain{};  ///< [D], undefined without a gain
  Execution execution{};
};

/// y = silu(gate) up, silu(x) = x / (1 + exp(-x)); all of one shape.
struct SwigluArgs {
  ConstTensorView gate{}, up{};
  TensorView y{};
  Execution execution{};
};

/// The gradients of sum(dy y).
struct SwigluBackwardArgs {
  ConstTensorView dy{}, gate{}, up{};
  TensorView d_gate{}, d_up{};
  Execution execution{};
};

/// Each throws Error at the first fault; nothing has been read or written then.
void validate(const NormRopeArgs& args);
void validate(const NormRopeBackwardArgs& args);
void validate(const SwigluArgs& args);
void validate(const SwigluBackwardArgs& args);

inline Grid grid_of(const ConstTensorView& tensor) {
  Grid grid{.sizes = {1, 1, 1}, .dim = static_cast<int>(tensor.size(tensor.rank - 1))};
  for (int dim = 0; dim < tensor.rank - 1; ++dim)
    grid.sizes[4 - tensor.rank + dim] = tensor.size(dim);
  return grid;
}

template <typename Pointee>
GridTensor<Pointee> rows_of(const BasicTensorView<Pointee>& tensor) {
  GridTensor<Pointee> rows{.data = tensor.data, .dtype = tensor.dtype, .strides = {}};
  for (int dim = 0; dim < tensor.rank - 1; ++dim)
    rows.strides[4 - tensor.rank + dim] = tensor.stride(dim);
  return rows;
}

}  // namespace parallax::core
