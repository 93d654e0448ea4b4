// The Hopper backward kernels as the backend sees them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include "cuda/call.h"
#include "cuda/device_info.h"
#include "parallax/backend.h"

namespace parallax::cuda::sm90 {

/// Whether an instance takes the call: bfloat16 or float16, a head size that was built, a positive
/// scale, at least one query and key, tensors that the copy engine can read and 16-byte accesses
/// can read and write.
Support supports_backward(const BackwardCall& call);

/// 16-byte aligned device memory that launch_backward() needs: 16 bytes per query and head, and 32
/// per tile of 128 rows.
int64_t backward_workspace_bytes(const BackwardCall& call);

/// Enqueues the call on `stream` of the current device. Bitwise repeatable. Throws Error if a
/// launch fails.
void launch_backward(const BackwardCall& call, const DeviceInfo& device, void* workspace,
                     cudaStream_t stream);

}  // namespace parallax::cuda::sm90
