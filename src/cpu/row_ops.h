// RMSNorm, rotary embedding and SwiGLU on the CPU, each one pass over its rows, forward and
// backward: the parts of a model between its matrix products and attention.
//
// All of them: tensors are float32, bfloat16 or float16, each its own, with 1 to 4 dimensions and
// any strides but 1 in the last. Computed in float32, rounded once per result. Outputs must not
// overlap anything else. The same bits for any number of threads: the work is cut into blocks of
// rows by the shape alone, and sums over rows are added per block, then over blocks in order.
// Throws Error for arguments outside this, before anything is written.
//
// Legend: N tokens, H heads, D size of the last dimension.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/kernels.h"
#include "parallax/tensor.h"

namespace parallax::cpu {

/// y = rotate(gain x / sqrt(mean(x^2) + eps)) over the last dimension: with a gain RMSNorm, with
/// tables the half-split rotary embedding, dimension i turning with i + D / 2. At least one of
/// them.
struct NormRopeArgs {
  ConstTensorView x{};           ///< [.., D], [.., N, H, D] with tables
  ConstTensorView gain{};        ///< [D], or undefined: nothing is normalised
  ConstTensorView cos{}, sin{};  ///< float32 [N, D / 2], or undefined: nothing is rotated
  double eps = 0.0;
  TensorView y{};  ///< the shape of x
};
void norm_rope(const Kernels& kernels, const NormRopeArgs& args);

/// The gradients of sum(dy y). Memory beside the outputs: at most D floats per 16 rows.
struct NormRopeBackwardArgs {
  ConstTensorView dy{};  ///< the shape of x
  ConstTensorView x{}, gain{}, cos{}, sin{};
  double eps = 0.0;
  TensorView dx{};      ///< the shape of x
  TensorView d_gain{};  ///< [D], undefined without a gain
};
void norm_rope_backward(const Kernels& kernels, const NormRopeBackwardArgs& args);

/// y = silu(gate) up, silu(x) = x / (1 + exp(-x)); all of one shape.
struct SwigluArgs {
  ConstTensorView gate{}, up{};
  TensorView y{};
};
void swiglu(const Kernels& kernels, const SwigluArgs& args);

/// The gradients of sum(dy y).
struct SwigluBackwardArgs {
  ConstTensorView dy{}, gate{}, up{};
  TensorView d_gate{}, d_up{};
};
void swiglu_backward(const Kernels& kernels, const SwigluBackwardArgs& args);

}  // namespace parallax::cpu
