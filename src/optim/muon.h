// Muon: momentum whose step is orthogonalised, for hidden weight matrices.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "optim/newton_schulz.h"
#include "optim/optimizer.h"
#include "optim/ranks.h"

namespace parallax::optim {

/// The factor on the orthogonalised step of a [rows, cols] block:
///   kOriginal       sqrt(max(1, rows / cols)): equal spectral norm of the layers' changes
///   kMatchRmsAdamW  0.2 sqrt(max(rows, cols)): the RMS of an AdamW step, so that its lr carries
///   over
enum class MuonScaling { kOriginal, kMatchRmsAdamW };

/// "original" or "match_rms_adamw"; anything else is an Error that lists them.
MuonScaling parse_muon_scaling(std::string_view name);

struct MuonOptions {
  double momentum = 0.95;
  bool nesterov = true;
  MuonScaling scaling = MuonScaling::kOriginal;
  NewtonSchulzOptions newton_schulz = {};
};

/// A 2-D parameter and how it is trained.
struct MuonParameter {
  std::string name;
  torch::Tensor tensor;
  double lr = 0;
  double weight_decay = 0;
  /// Row counts of the matrices fused into this one; each is orthogonalised and scaled alone. Empty
  /// for a single matrix.
  std::vector<int64_t> row_splits = {};
};

/// With gradient G, buffer M and lr' = lr * scale of the schedule:
///   M <- M + (1 - momentum)(G - M);   N = nesterov ? G + momentum (M - G) : M
///   P <- (1 - lr' weight_decay) P - lr' factor NewtonSchulz(N)
/// State: "<name>.momentum", of the gradient's shape and dtype.
/// Of several ranks, each has all gradients, buffers and parameters, but orthogonalises only its
/// share of the matrices, about the same number of FLOPs for each, and sends the results to the
/// others.
class Muon : public Optimizer {
 public:
  /// Throws if a parameter is not 2-D, or its splits do not sum to its rows.
  Muon(std::vector<MuonParameter> parameters, const MuonOptions& options,
       std::shared_ptr<Ranks> ranks = std::make_shared<Ranks>());

  void step(const StepScales& scales) override;
  std::map<std::string, torch::Tensor> state() const override;
  void load_state(const std::map<std::string, torch::Tensor>& state) override;

 private:
  // A matrix whose orthogonal factor is on its way from the rank that computes it.
  struct Update {
    size_t parameter_idx = 0;
    torch::Tensor orthogonal;
    Ranks::Wait wait;
  };
  std::vector<Update> start_round(const std::vector<size_t>& round);
  void finish_round(std::vector<Update>& updates, const StepScales& scales);
  torch::Tensor orthogonalised(size_t parameter_idx) const;

  std::vector<MuonParameter> parameters_;
  std::vector<torch::Tensor> momentum_;  // zeros before the first step
  MuonOptions options_;
  std::shared_ptr<Ranks> ranks_;
  // Indices of parameters: at most one that each rank owns in a round.
  std::vector<std::vector<size_t>> rounds_;
  std::vector<int> owner_;
};

/// Which rank takes each job: the dearest job first, always to the rank with the least so far, the
/// first of equals.
std::vector<int> share_out(const std::vector<double>& costs, int num_ranks);

}  // namespace parallax::optim
