// The CPU backend on every instruction set.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "parallax/backend.h"
#include "support/row_case.h"

namespace parallax::testing {

/// The sets of this machine, best first, then the matrix unit's kernels on emulated tile registers,
/// which run anywhere.
const std::vector<cpu::InstructionSet>& instruction_sets();

/// A backend for each of them.
const std::vector<const Backend*>& cpu_backends();

/// Their row kernels, which several sets may share.
const std::vector<TestedRowOps>& cpu_row_ops();

}  // namespace parallax::testing
