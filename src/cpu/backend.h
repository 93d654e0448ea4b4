// The fast CPU backend: tiled, threaded, memory O(T), fp32 arithmetic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "parallax/backend.h"

namespace parallax::cpu {

/// Runs on the best instruction set of this machine: AVX-512, AVX2 with FMA, or the compiler's
/// default target. Computes forward, backward and decode in float32, bfloat16 and float16, always
/// with fp32 arithmetic inside. The same bits for any number of threads; the bits differ between
/// instruction sets.
const Backend& backend();

/// One backend per instruction set that this machine can run, best first: for tests.
std::span<const Backend* const> backends_by_isa();

}  // namespace parallax::cpu
