// SPDX-License-Identifier: Apache-2.0
#include "cpu/backward.h"

namespace parallax::cpu {

BackwardInputs backward_inputs(const core::Problem& problem, const BackwardArgs& args,
                               const core::Sequence& sequence, int64_t head_kv) {
  return {.tile = tile_inputs(problem, sequence, head_kv),
          .d_out = group_rows(problem, args.d_out, sequence, head_kv),
          .out = group_rows(problem, args.out, sequence, head_kv),
          .out_softmax = group_rows(problem, args.out_softmax, sequence, head_kv),
          .lse = group_scalars(problem, args.lse, sequence, head_kv),
          .t_mean = group_scalars(problem, args.t_mean, sequence, head_kv),
          .packed_q = {},
          .packed_r = {},
          .packed_d_out = {}};
}

void backward(const Kernels& kernels, const BackwardArgs& args) {
  if (kernels.fused_backward != nullptr)
    fused_backward(kernels, args);
  else
    two_pass_backward(kernels, args);
}

}  // namespace parallax::cpu
