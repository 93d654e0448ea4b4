// AdamW: one LibTorch parameter group per parameter, since rates and decays differ among them.
// SPDX-License-Identifier: Apache-2.0
#include "optim/adamw.h"

#include "optim/state_map.h"

namespace parallax::optim {

AdamW::AdamW(std::vector<AdamWParameter> parameters, const AdamWOptions& options)
    : parameters_(std::move(parameters)) {
  const auto defaults =
      torch::optim::AdamWOptions().betas({options.beta1, options.beta2}).eps(options.eps);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (const auto& parameter : parameters_)
    groups.emplace_back(std::vector<torch::Tensor>{parameter.tensor},
                        std::make_unique<torch::optim::AdamWOptions>(defaults));
  adamw_ = std::make_unique<torch::optim::AdamW>(groups, defaults);
  // LibTorch makes the state at the first step; made here, state() has the same names from the
  // start. Zeros and step 0 are what LibTorch would make.
  for (const auto& parameter : parameters_) {
    auto state = std::make_unique<torch::optim::AdamWParamState>();
    state->step(0);
    state->exp_avg(torch::zeros_like(parameter.tensor, torch::MemoryFormat::Preserve));
    state->exp_avg_sq(torch::zeros_like(parameter.tensor, torch::MemoryFormat::Preserve));
    adamw_->state()[parameter.tensor.unsafeGetTensorImpl()] = std::move(state);
  }
}

torch::optim::AdamWParamState& AdamW::state_of(const AdamWParameter& parameter) const {
  return static_cast<torch::optim::AdamWParamState&>(
      *adamw_->state().at(parameter.tensor.unsafeGetTensorImpl()));
}

void AdamW::step(const StepScales& scales) {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    auto& options = static_cast<torch::optim::AdamWOptions&>(adamw_->param_groups()[i].options());
    options.lr(parameters_[i].lr * scales.lr);
    options.weight_decay(parameters_[i].weight_decay * scales.weight_decay);
  }
  adamw_->step();
}

std::map<std::string, torch::Tensor> AdamW::state() const {
  std::map<std::string, torch::Tensor> state;
  for (const auto& parameter : parameters_) {
    const auto& parameter_state = state_of(parameter);
    state[parameter.name + ".exp_avg"] = parameter_state.exp_avg();
    state[parameter.name + ".exp_avg_sq"] = parameter_state.exp_avg_sq();
    state[parameter.name + ".step"] = torch::tensor(parameter_state.step(), torch::kInt64);
  }
  return state;
}

void AdamW::load_state(const std::map<std::string, torch::Tensor>& state) {
  const auto target = this->state();
  copy_state(state, target);
  for (const auto& parameter : parameters_)
    state_of(parameter).step(target.at(parameter.name + ".step").item<int64_t>());
}

}  // namespace parallax::optim
