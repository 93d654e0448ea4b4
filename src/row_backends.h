// RMSNorm, rotary embedding and SwiGLU (core/row_ops.h) on whichever device the tensors are.
//
// Each function checks its arguments and runs: on the CPU with the widest instruction set, on CUDA
// enqueued on execution.stream, where nothing waits for the host. PLX_BACKEND is about attention
// and changes nothing here. Throws Error for arguments that core::validate() refuses and for a
// device that supports_row_ops() refuses, before anything is written.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/row_ops.h"
#include "parallax/backend.h"

namespace parallax {

/// Whether this build has kernels for the device, and if not, why.
Support supports_row_ops(const Device& device);

void norm_rope(const core::NormRopeArgs& args);
/// Needs execution.workspace, of this many bytes: 0 on the CPU and without a gain.
int64_t workspace_bytes(const core::NormRopeBackwardArgs& args);
void norm_rope_backward(const core::NormRopeBackwardArgs& args);
void swiglu(const core::SwigluArgs& args);
void swiglu_backward(const core::SwigluBackwardArgs& args);

}  // namespace parallax
