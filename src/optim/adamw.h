// AdamW (LibTorch's) behind the optimizer contract.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/optim/adamw.h>

#include "optim/optimizer.h"

namespace parallax::optim {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
};

struct AdamWParameter {
  std::string name;
  torch::Tensor tensor;
  double lr = 0;
  double weight_decay = 0;
};

/// Decoupled decay: P <- (1 - lr' weight_decay) P - lr' m_hat / (sqrt(v_hat) + eps).
/// State: "<name>.exp_avg", "<name>.exp_avg_sq" of the parameter's shape and "<name>.step", int64
/// scalar; zeros before the first step.
class AdamW : public Optimizer {
 public:
  AdamW(std::vector<AdamWParameter> parameters, const AdamWOptions& options);

  void step(const StepScales& scales) override;
  std::map<std::string, torch::Tensor> state() const override;
  void load_state(const std::map<std::string, torch::Tensor>& state) override;

 private:
  torch::optim::AdamWParamState& state_of(const AdamWParameter& parameter) const;

  std::vector<AdamWParameter> parameters_;
  std::unique_ptr<torch::optim::AdamW> adamw_;
};

}  // namespace parallax::optim
