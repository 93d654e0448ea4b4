// The contract of an optimizer, and the parameter groups it is given.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace parallax::optim {

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

/// The factors that schedules apply to a step: lr = group lr * lr_scale, likewise the weight decay.
struct StepScales {
  double lr = 1.0;
  double weight_decay = 1.0;
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// Updates the parameters from their gradients; parameters without a gradient are left alone.
  virtual void step(const StepScales& scales) = 0;
  /// State tensors under stable names ("<parameter>.momentum", ...): a checkpoint holds exactly
  /// these.
  virtual std::map<std::string, torch::Tensor> state() const = 0;
  /// Restores what state() gave; a missing, unknown or misshapen tensor is an error that names it.
  virtual void load_state(const std::map<std::string, torch::Tensor>& state) = 0;
};

}  // namespace parallax::optim
