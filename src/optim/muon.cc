// Muon, term by term as torch.optim.Muon computes it, so that trajectories can be compared.
// SPDX-License-Identifier: Apache-2.0
#include "optim/muon.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "optim/state_map.h"
#include "parallax/error.h"

namespace parallax::optim {
namespace {

double scaling_factor(MuonScaling scaling, int64_t num_rows, int64_t num_cols) {
  const auto rows = static_cast<double>(num_rows), cols = static_cast<double>(num_cols);
  return scaling == MuonScaling::kOriginal ? std::sqrt(std::max(1.0, rows / cols))
                                           : 0.2 * std::sqrt(std::max(rows, cols));
}

/// Multiply-adds of a Newton-Schulz step: a Gram matrix of the short side m, its square, and a
/// product with the matrix.
double newton_schulz_cost(const MuonParameter& parameter) {
  double cost = 0;
  for (const int64_t num_rows : parameter.row_splits) {
    const auto [m, n] =
        std::minmax({static_cast<double>(num_rows), static_cast<double>(parameter.tensor.size(1))});
    cost += m * m * (2 * n + m);
  }
  return cost;
}

}  // namespace

MuonScaling parse_muon_scaling(std::string_view name) {
  if (name == "original") return MuonScaling::kOriginal;
  if (name == "match_rms_adamw") return MuonScaling::kMatchRmsAdamW;
  PLX_FAIL("unknown Muon scaling '", name, "'; it is one of original, match_rms_adamw");
}

std::vector<int> share_out(const std::vector<double>& costs, int num_ranks) {
  std::vector<size_t> order(costs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t left, size_t right) { return costs[left] > costs[right]; });
  std::vector<int> owners(costs.size());
  std::vector<double> loads(static_cast<size_t>(num_ranks));
  for (const size_t idx : order) {
    const auto least = std::min_element(loads.begin(), loads.end());
    owners[idx] = static_cast<int>(least - loads.begin());
    *least += costs[idx];
  }
  return owners;
}

Muon::Muon(std::vector<MuonParameter> parameters, const MuonOptions& options,
           std::shared_ptr<Ranks> ranks)
    : parameters_(std::move(parameters)), options_(options), ranks_(std::move(ranks)) {
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
  std::vector<double> costs;
  for (const auto& parameter : parameters_) costs.push_back(newton_schulz_cost(parameter));
  owner_ = share_out(costs, ranks_->size());
  std::vector<size_t> num_owned(static_cast<size_t>(ranks_->size()));
  for (size_t idx = 0; idx < parameters_.size(); ++idx) {
    const size_t round = num_owned[static_cast<size_t>(owner_[idx])]++;
    if (round == rounds_.size()) rounds_.emplace_back();
    rounds_[round].push_back(idx);
  }
}

torch::Tensor Muon::orthogonalised(size_t parameter_idx) const {
  const MuonParameter& parameter = parameters_[parameter_idx];
  const torch::Tensor& gradient = parameter.tensor.grad();
  const torch::Tensor& momentum = momentum_[parameter_idx];
  const torch::Tensor direction =
      options_.nesterov ? gradient.lerp(momentum, options_.momentum) : momentum;
  std::vector<torch::Tensor> blocks;
  for (const torch::Tensor& block : direction.split_with_sizes(parameter.row_splits))
    blocks.push_back(newton_schulz(block, options_.newton_schulz));
  return blocks.size() == 1 ? blocks[0] : torch::cat(blocks);
}

std::vector<Muon::Update> Muon::start_round(const std::vector<size_t>& round) {
  std::vector<Update> updates;
  for (const size_t idx : round) {
    const torch::Tensor gradient = parameters_[idx].tensor.grad();
    if (!gradient.defined()) continue;
    momentum_[idx].lerp_(gradient, 1 - options_.momentum);
    updates.push_back({.parameter_idx = idx, .orthogonal = {}, .wait = {}});
  }
  // This rank's own work first: the others' arrives meanwhile.
  for (Update& update : updates)
    if (owner_[update.parameter_idx] == ranks_->rank())
      update.orthogonal = orthogonalised(update.parameter_idx);
  for (Update& update : updates) {
    const torch::Tensor& matrix = parameters_[update.parameter_idx].tensor;
    if (!update.orthogonal.defined())
      update.orthogonal =
          torch::empty(matrix.sizes(),
                       matrix.options().dtype(options_.newton_schulz.dtype).requires_grad(false));
    else if (ranks_->size() > 1)
      update.orthogonal = update.orthogonal.contiguous();
    update.wait = ranks_->start_broadcast(update.orthogonal, owner_[update.parameter_idx]);
  }
  return updates;
}

void Muon::finish_round(std::vector<Update>& updates, const StepScales& scales) {
  for (const Update& update : updates) {
    update.wait();
    const MuonParameter& parameter = parameters_[update.parameter_idx];
    torch::Tensor tensor = parameter.tensor;
    const double lr = parameter.lr * scales.lr;
    tensor.mul_(1 - lr * parameter.weight_decay * scales.weight_decay);
    for (int64_t row = 0; int64_t num_rows : parameter.row_splits) {
      const double factor = scaling_factor(options_.scaling, num_rows, tensor.size(1));
      tensor.narrow(0, row, num_rows)
          .add_(update.orthogonal.narrow(0, row, num_rows), -lr * factor);
      row += num_rows;
    }
  }
  updates.clear();
}

void Muon::step(const StepScales& scales) {
  torch::NoGradGuard no_grad;
  // A round is computed while the one before it is on its way; alone, a round is one matrix.
  std::vector<Update> sent;
  for (const auto& round : rounds_) {
    std::vector<Update> started = start_round(round);
    finish_round(sent, scales);
    sent = std::move(started);
  }
  finish_round(sent, scales);
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
