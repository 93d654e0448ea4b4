// The CUDA backends, where there is a device for them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "support/attention_case.h"
#include "support/row_case.h"

namespace parallax::testing {

/// The plain kernels, and the choice that users get: the Hopper kernels for the calls they take and
/// the plain ones for the rest. Empty in a build without CUDA and on a machine without a device.
const std::vector<TestedBackend>& cuda_backends();

/// The row kernels of that device, if there is one.
const std::vector<TestedRowOps>& cuda_row_ops();

}  // namespace parallax::testing
