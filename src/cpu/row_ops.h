// RMSNorm, rotary embedding and SwiGLU on the CPU, each one pass over its rows, forward and
// backward. core/row_ops.h says what they compute; arguments have passed its checks.
//
// The same bits for any number of threads: the work is cut into blocks of rows by the shape alone,
// and sums over rows are added per block, then over blocks in order.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/row_ops.h"
#include "cpu/kernels.h"

namespace parallax::cpu {

void norm_rope(const Kernels& kernels, const core::NormRopeArgs& args);
/// Memory beside the outputs: at most D floats per 16 rows.
void norm_rope_backward(const Kernels& kernels, const core::NormRopeBackwardArgs& args);
void swiglu(const Kernels& kernels, const core::SwigluArgs& args);
void swiglu_backward(const Kernels& kernels, const core::SwigluBackwardArgs& args);

}  // namespace parallax::cpu
