// Whole checks that several test files share.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/attention_case.h"

namespace parallax::testing {

/// Runs forward and backward of every tested backend and compares all outputs with the truth within
/// the derived tolerance. Failures name case, seed, backend and tensor.
void expect_case_conforms(const AttentionCase& attention_case, uint64_t seed);

}  // namespace parallax::testing
