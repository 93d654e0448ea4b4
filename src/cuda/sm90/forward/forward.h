// The Hopper forward kernel as the backend sees it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include "cuda/call.h"
#include "cuda/device_info.h"
#include "parallax/backend.h"

namespace parallax::cuda::sm90 {

/// Whether an instance takes the call: bfloat16 or float16, a head size that was built, a positive
/// scale, at least one query and key, tensors that the copy engine can read and 16-byte stores can
/// write.
Support supports_forward(const ForwardCall& call);

/// 16-byte aligned device memory that launch_forward() needs.
int64_t forward_workspace_bytes(const ForwardCall& call);

/// Enqueues the call on `stream` of the current device. Bitwise repeatable. Throws Error if a
/// launch fails.
void launch_forward(const ForwardCall& call, const DeviceInfo& device, void* workspace,
                    cudaStream_t stream);

}  // namespace parallax::cuda::sm90
