// The two ways to compute the gradients (attention.h, backward). Each gives the same bits for any
// number of threads.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/attention.h"

namespace parallax::cpu {

/// 8 matrix products per pair of tiles, for kernels that have fused_backward.
void fused_backward(const Kernels& kernels, const BackwardArgs& args);

/// 11 matrix products per pair of tiles, for the others, which pack their operands.
void two_pass_backward(const Kernels& kernels, const BackwardArgs& args);

/// What the tiles of one sequence and key head read, without packed operands.
BackwardInputs backward_inputs(const core::Problem& problem, const BackwardArgs& args,
                               const core::Sequence& sequence, int64_t head_kv);

}  // namespace parallax::cpu
