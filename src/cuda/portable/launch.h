// Plain kernels for any GPU since sm_80: the fallback, and the second opinion beside the fast ones.
// float32, bfloat16 and float16; any head size from 1 to 256; products and sums in float32.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/call.h"

namespace parallax::cuda::portable {

/// Each enqueues its kernels on `stream` of the current device and returns. Throws Error if a
/// launch fails. Bitwise repeatable.
void launch_forward(const ForwardCall& call, cudaStream_t stream);

/// `workspace`: backward_workspace_bytes(call) bytes, 16-byte aligned, that belong to the kernels.
int64_t backward_workspace_bytes(const BackwardCall& call);
void launch_backward(const BackwardCall& call, void* workspace, cudaStream_t stream);

/// The same as launch_forward over a cache, split over the keys where the queries are few.
/// `workspace`: decode_workspace_bytes(call) bytes, 16-byte aligned.
int64_t decode_workspace_bytes(const ForwardCall& call);
void launch_decode(const ForwardCall& call, void* workspace, cudaStream_t stream);

/// In float64 with the operations of the reference; only exp and log are another library's. At most
/// kMaxPartials partials, whose addresses and strides are the kernel's arguments (of 32764 bytes at
/// most): there is no workspace that could hold more.
inline constexpr int kMaxPartials = 240;
void launch_merge(const MergeArgs& args, cudaStream_t stream);

}  // namespace parallax::cuda::portable
