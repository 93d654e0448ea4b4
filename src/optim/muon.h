// Muon: momentum whose step is orthogonalised, for hidden weight matrices.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

#include "optim/newton_schulz.h"
#include "optim/optimizer.h"

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
class Muon : public Optimizer {
 public:
  /// Throws if a parameter is not 2-D, or its splits do not sum to its rows.
  Muon(std::vector<MuonParameter> parameters, const MuonOptions& options);

  void step(const StepScales& scales) override;
  std::map<std::string, torch::Tensor> state() const override;
  void load_state(const std::map<std::string, torch::Tensor>& state) override;

 private:
  std::vector<MuonParameter> parameters_;
  std::vector<torch::Tensor> momentum_;  // zeros before the first step
  MuonOptions options_;
};

}  // namespace parallax::optim
