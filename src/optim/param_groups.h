// Which optimizer trains which parameter, and at which rate: one table from names and shapes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "optim/adamw.h"
#include "optim/muon.h"
#include "optim/optimizer.h"

namespace parallax::optim {

enum class Algorithm { kMuon, kAdamW };

Algorithm parse_algorithm(std::string_view name);  ///< "muon", "adamw"
std::string_view to_string(Algorithm algorithm);

/// An exception to the defaults below; the last rule whose pattern matches a name wins, field by
/// field.
struct GroupRule {
  /// The whole parameter name; `*` stands for any characters.
  std::string pattern;
  std::optional<Algorithm> algorithm = {};
  std::optional<double> lr_multiplier = {};
  std::optional<double> weight_decay = {};
  std::optional<std::vector<int64_t>> row_splits = {};
};

/// Defaults by kind of parameter:
///   embedding, head       AdamW, lr embedding_lr_multiplier * lr, weight_decay
///   other 2-D (hidden)    `algorithm`, lr, weight_decay
///   gains, biases         AdamW, lr norm_lr_multiplier * lr, no decay
struct OptimizerOptions {
  Algorithm algorithm = Algorithm::kMuon;
  double lr = 0.02;
  double weight_decay = 0.1;
  double embedding_lr_multiplier = 1;
  double norm_lr_multiplier = 1;
  MuonOptions muon = {};
  AdamWOptions adamw = {};
  std::vector<GroupRule> rules = {};
};

/// What one parameter was given.
struct ParameterPlan {
  std::string name;
  torch::Tensor tensor;
  std::string kind = {};  ///< "hidden", "embedding", "gain" or "bias"
  Algorithm algorithm = Algorithm::kAdamW;
  double lr = 0;
  double weight_decay = 0;
  std::vector<int64_t> row_splits = {};
};

/// One plan per parameter, in the given order. A rule that matches nothing, or that gives Muon a
/// parameter which is not a hidden matrix, is an Error.
std::vector<ParameterPlan> plan_parameters(const NamedTensors& parameters,
                                           const OptimizerOptions& options);

/// Muon and AdamW over their shares of the plan, as one optimizer; of several ranks, each has one.
std::unique_ptr<Optimizer> make_optimizer(
    const std::vector<ParameterPlan>& plan, const OptimizerOptions& options,
    const std::shared_ptr<Ranks>& ranks = std::make_shared<Ranks>());

/// Lines such as "muon   hidden     14 tensors  1,769,472 parameters  lr 0.02  decay 0.1".
std::vector<std::string> describe(const std::vector<ParameterPlan>& plan);

}  // namespace parallax::optim
