// The CUDA backends: kernels for Hopper, and plain ones for any GPU since sm_80.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "parallax/backend.h"

namespace parallax::cuda {

/// wgmma and TMA kernels for compute capability 9.0: forward in bfloat16 and float16 with the head
/// sizes of sm90/instances.cmake. Bitwise repeatable.
const Backend& sm90_backend();

/// Everything, in float32, bfloat16 and float16, with sums and products in float32. Bitwise
/// repeatable.
const Backend& portable_backend();

}  // namespace parallax::cuda
