// What a layer does to each row between its matrix products: RMSNorm, rotary embedding, SwiGLU.
//
// One pass each on the CPU and on CUDA devices for which this build has kernels (row_backends.h);
// in float64 and elsewhere Torch's ops, one after the other. Computed in float32 or wider, whatever
// the dtypes around, and rounded once. Differentiable once. The same bits in each repeat, on the
// CPU for any number of threads.
//
// Legend: N tokens, H heads, D size of the last dimension.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include "nn/mixer.h"

namespace parallax::nn {

struct NormRope {
  torch::Tensor gain{};  ///< [D]; undefined: nothing is normalised
  double eps = 0;
  const RotaryTables* rope = nullptr;         ///< null: nothing is rotated
  torch::ScalarType dtype = torch::kFloat32;  ///< of the result
};

/// rotate(gain x / sqrt(mean(x^2) + eps)) over the last dimension of x [.., D]; with a rotation, in
/// which dimension i turns with i + D / 2 by the angle of its token, x is [.., N, H, D].
torch::Tensor norm_rope(const torch::Tensor& x, const NormRope& options);

/// silu(gate) * up, silu(x) = x / (1 + exp(-x)); one shape, one dtype.
torch::Tensor swiglu(const torch::Tensor& gate, const torch::Tensor& up);

}  // namespace parallax::nn
