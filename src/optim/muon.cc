// Muon, term by term as torch.optim.Muon computes it, so that trajectories can be compared.
// SPDX-License-Identifier: Apache-2.0
#include "optim/muon.h"

#include <cmath>
#include <numeric>

#include "optim/state_map.h"
#include "parallax/error.h"

namespace parallax::optim {
namespace {

double scaling_factor(MuonScaling scaling, int64_t num_rows, int64_t num_cols) {
  const auto rows = static_cast<double>(num_rows), cols = static_cast<double>(num_cols);
  return scaling == MuonScaling::kOriginal ? std::sqrt(std::max(1.0, rows / cols))
                                           : 0.2 * std::sqrt(std::max(rows, cols));
}

}  // namespace

MuonScaling parse_muon_scaling(std::string_view name) {
  if (name == "original") return MuonScaling::kOriginal;
  if (name == "match_rms_adamw") return MuonScaling::kMatchRmsAdamW;
  PLX_FAIL("unknown Muon scaling '", name, "'; it is one of original, match_rms_adamw");
}

Muon::Muon(std::vector<MuonParameter> parameters, const MuonOptions& options)
    : parameters_(std::move(parameters)), options_(options) {
  for (auto& parameter : parameters_) {
    PLX_CHECK(parameter.tensor.dim() == 2, "Muon trains matrices; ", parameter.name, " has ",
              parameter.tensor.dim(), " dimensions");
    auto& splits = parameter.row_splits;
    if (splits.empty()) splits.push_back(parameter.tensor.size(0));
    const int64_t num_rows = std::accumulate(splits.begin(), splits.end(), int64_t{0});
    PLX_CHECK(num_rows == parameter.tensor.size(0), "the row splits of ", parameter.name,
              " sum to ", num_rows, ", not to its ", parameter.tensor.size(0), " rows");
    momentum_.push_back(torch::zeros_like(parameter.tensor, torch::MemoryFormat::Contiguous));
  }
}

void Muon::step(const StepScales& scales) {
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const MuonParameter& parameter = parameters_[i];
    torch::Tensor tensor = parameter.tensor;
    const torch::Tensor gradient = tensor.grad();
    if (!gradient.defined()) continue;
    torch::Tensor& momentum = momentum_[i];
    momentum.lerp_(gradient, 1 - options_.momentum);
    const torch::Tensor direction =
        options_.nesterov ? gradient.lerp(momentum, options_.momentum) : momentum;

    const double lr = parameter.lr * scales.lr;
    tensor.mul_(1 - lr * parameter.weight_decay * scales.weight_decay);
    for (int64_t row = 0; int64_t num_rows : parameter.row_splits) {
      const torch::Tensor update =
          newton_schulz(direction.narrow(0, row, num_rows), options_.newton_schulz);
      const double factor = scaling_factor(options_.scaling, num_rows, tensor.size(1));
      tensor.narrow(0, row, num_rows).add_(update, -lr * factor);
      row += num_rows;
    }
  }
}

std::map<std::string, torch::Tensor> Muon::state() const {
  std::map<std::string, torch::Tensor> state;
  for (size_t i = 0; i < parameters_.size(); ++i)
    state[parameters_[i].name + ".momentum"] = momentum_[i];
  return state;
}

void Muon::load_state(const std::map<std::string, torch::Tensor>& state) {
  copy_state(state, this->state());
}

}  // namespace parallax::optim
