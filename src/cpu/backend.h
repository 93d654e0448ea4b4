// The fast CPU backend: tiled, threaded, memory O(T).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "cpu/kernels.h"
#include "parallax/backend.h"

namespace parallax::cpu {

/// Runs on the best instruction set of this machine (AMX-BF16, AVX-512, AVX2 with FMA, or the
/// compiler's default target), or the one that PLX_ISA names; throws Error if the machine lacks
/// that. Takes float32, bfloat16 and float16. Forward, backward and decode have fp32 sums inside;
/// the merge has float64, with the reference's bits. The same bits for any number of threads; those
/// of the first three differ between instruction sets.
const Backend& backend();

/// The set that backend() runs on.
const InstructionSet& instruction_set();

/// The same on one instruction set: for tests.
std::unique_ptr<Backend> make_backend(const InstructionSet& set);

}  // namespace parallax::cpu
