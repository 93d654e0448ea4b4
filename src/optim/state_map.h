// Restoring the state of an optimizer, with one wording for what can be wrong.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <map>
#include <string>

namespace parallax::optim {

/// Copies each tensor of `source` into the tensor of the same name in `target`. The names must be
/// the same on both sides, and so must shapes and dtypes: otherwise an Error names the tensor and
/// nothing has been copied.
void copy_state(const std::map<std::string, torch::Tensor>& source,
                const std::map<std::string, torch::Tensor>& target);

}  // namespace parallax::optim
