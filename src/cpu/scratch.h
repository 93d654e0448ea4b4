// Memory that the kernels of one thread work in.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace parallax::cpu {

/// `count` floats, 64-byte aligned, owned by the calling thread and reused by its next call: a task
/// must not keep the pointer. In debug and sanitizer builds they start as NaN.
float* thread_scratch(int64_t count);

}  // namespace parallax::cpu
