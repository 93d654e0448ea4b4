// RMSNorm, rotary embedding and SwiGLU on any GPU since compute capability 8.0, forward and
// backward. core/row_ops.h says what they compute; arguments have passed its checks, and
// supports_row_ops() the device.
//
// Each function enqueues its kernels on execution.stream of the tensors' device and returns. Every
// element is read once and written once, but for norm_rope's rows of more than kLongRow elements,
// which are read twice. Bitwise repeatable: a row's bits depend on that row alone, and the gain's
// gradient is summed without atomics, in an order that the shape decides. Throws Error for
// more rows than a grid can have and if a launch fails.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/row_ops.h"
#include "parallax/backend.h"

namespace parallax::cuda {

Support supports_row_ops(const Device& device);

/// Elements of a row that the threads of a block hold in their registers; rotated rows have half.
inline constexpr int kLongRow = 8192;

void norm_rope(const core::NormRopeArgs& args);
/// `args.execution.workspace`: workspace_bytes(args) bytes, 16-byte aligned; 0 without a gain.
int64_t workspace_bytes(const core::NormRopeBackwardArgs& args);
void norm_rope_backward(const core::NormRopeBackwardArgs& args);
void swiglu(const core::SwigluArgs& args);
void swiglu_backward(const core::SwigluBackwardArgs& args);

}  // namespace parallax::cuda
