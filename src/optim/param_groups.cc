// Parameter groups: the table that decides, and the optimizer that follows it.
// SPDX-License-Identifier: Apache-2.0
#include "optim/param_groups.h"

#include <algorithm>
#include <iomanip>
#include <sstream>
#include <tuple>

#include "core/grouped.h"
#include "parallax/error.h"

namespace parallax::optim {
namespace {

/// Glob with `*` only: on a mismatch the last star takes one character more.
bool matches(std::string_view pattern, std::string_view name) {
  size_t pattern_idx = 0, name_idx = 0, star_idx = std::string_view::npos, resume_idx = 0;
  while (name_idx < name.size()) {
    if (pattern_idx < pattern.size() && pattern[pattern_idx] == '*') {
      star_idx = pattern_idx++;
      resume_idx = name_idx;
    } else if (pattern_idx < pattern.size() && pattern[pattern_idx] == name[name_idx]) {
      ++pattern_idx, ++name_idx;
    } else if (star_idx != std::string_view::npos) {
      pattern_idx = star_idx + 1;
      name_idx = ++resume_idx;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', pattern_idx) == std::string_view::npos;
}

std::string kind_of(const std::string& name, const torch::Tensor& tensor) {
  if (name.ends_with("embed_tokens.weight") || name.ends_with("lm_head.weight")) return "embedding";
  if (tensor.dim() == 2) return "hidden";
  return name.ends_with(".bias") ? "bias" : "gain";
}

ParameterPlan default_plan(const std::string& name, const torch::Tensor& tensor,
                           const OptimizerOptions& options) {
  ParameterPlan plan{.name = name, .tensor = tensor, .kind = kind_of(name, tensor)};
  plan.lr = options.lr;
  plan.weight_decay = options.weight_decay;
  if (plan.kind == "hidden") {
    plan.algorithm = options.algorithm;
  } else if (plan.kind == "embedding") {
    plan.lr *= options.embedding_lr_multiplier;
  } else {
    plan.lr *= options.norm_lr_multiplier;
    plan.weight_decay = 0;
  }
  return plan;
}

void apply_rule(const GroupRule& rule, double base_lr, ParameterPlan& plan) {
  if (rule.algorithm) plan.algorithm = *rule.algorithm;
  if (rule.lr_multiplier) plan.lr = base_lr * *rule.lr_multiplier;
  if (rule.weight_decay) plan.weight_decay = *rule.weight_decay;
  if (rule.row_splits) plan.row_splits = *rule.row_splits;
  PLX_CHECK(plan.algorithm != Algorithm::kMuon || plan.kind == "hidden", "the group '",
            rule.pattern, "' gives Muon the parameter ", plan.name, " (", plan.kind,
            "); Muon trains hidden matrices only");
}

/// Several optimizers over disjoint parameters.
class CompositeOptimizer : public Optimizer {
 public:
  explicit CompositeOptimizer(std::vector<std::unique_ptr<Optimizer>> parts)
      : parts_(std::move(parts)) {}

  void step(const StepScales& scales) override {
    for (const auto& part : parts_) part->step(scales);
  }

  std::map<std::string, torch::Tensor> state() const override {
    std::map<std::string, torch::Tensor> state;
    for (const auto& part : parts_) state.merge(part->state());
    return state;
  }

  void load_state(const std::map<std::string, torch::Tensor>& state) override {
    // Names that no part knows go to the last one, which reports them.
    std::map<std::string, torch::Tensor> rest = state;
    for (const auto& part : parts_) {
      std::map<std::string, torch::Tensor> share;
      for (const auto& [name, tensor] : part->state())
        if (auto node = rest.extract(name)) share.insert(std::move(node));
      if (part == parts_.back()) share.merge(rest);
      part->load_state(share);
    }
  }

 private:
  std::vector<std::unique_ptr<Optimizer>> parts_;
};

}  // namespace

Algorithm parse_algorithm(std::string_view name) {
  if (name == "muon") return Algorithm::kMuon;
  if (name == "adamw") return Algorithm::kAdamW;
  PLX_FAIL("unknown optimizer '", name, "'; it is one of muon, adamw");
}

std::string_view to_string(Algorithm algorithm) {
  return algorithm == Algorithm::kMuon ? "muon" : "adamw";
}

std::vector<ParameterPlan> plan_parameters(const NamedTensors& parameters,
                                           const OptimizerOptions& options) {
  std::vector<bool> is_used(options.rules.size());
  std::vector<ParameterPlan> plans;
  for (const auto& [name, tensor] : parameters) {
    ParameterPlan plan = default_plan(name, tensor, options);
    for (size_t i = 0; i < options.rules.size(); ++i) {
      if (!matches(options.rules[i].pattern, name)) continue;
      is_used[i] = true;
      apply_rule(options.rules[i], options.lr, plan);
    }
    plans.push_back(std::move(plan));
  }
  for (size_t i = 0; i < options.rules.size(); ++i)
    PLX_CHECK(is_used[i], "the group '", options.rules[i].pattern,
              "' matches no parameter; names look like ",
              parameters.empty() ? "(none)" : parameters.back().first);
  return plans;
}

std::unique_ptr<Optimizer> make_optimizer(const std::vector<ParameterPlan>& plan,
                                          const OptimizerOptions& options,
                                          const std::shared_ptr<Ranks>& ranks) {
  std::vector<MuonParameter> muon;
  std::vector<AdamWParameter> adamw;
  for (const auto& entry : plan) {
    if (entry.algorithm == Algorithm::kMuon)
      muon.push_back({.name = entry.name,
                      .tensor = entry.tensor,
                      .lr = entry.lr,
                      .weight_decay = entry.weight_decay,
                      .row_splits = entry.row_splits});
    else
      adamw.push_back({.name = entry.name,
                       .tensor = entry.tensor,
                       .lr = entry.lr,
                       .weight_decay = entry.weight_decay});
  }
  std::vector<std::unique_ptr<Optimizer>> parts;
  if (!muon.empty()) parts.push_back(std::make_unique<Muon>(std::move(muon), options.muon, ranks));
  if (!adamw.empty()) parts.push_back(std::make_unique<AdamW>(std::move(adamw), options.adamw));
  PLX_CHECK(!parts.empty(), "there are no parameters to train");
  return std::make_unique<CompositeOptimizer>(std::move(parts));
}

std::vector<std::string> describe(const std::vector<ParameterPlan>& plan) {
  using Key = std::tuple<std::string, std::string, double, double>;
  std::vector<std::pair<Key, std::pair<int64_t, int64_t>>> groups;
  for (const auto& entry : plan) {
    const Key key{to_string(entry.algorithm), entry.kind, entry.lr, entry.weight_decay};
    auto found = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& group) { return group.first == key; });
    if (found == groups.end()) found = groups.insert(groups.end(), {key, {0, 0}});
    found->second.first += 1;
    found->second.second += entry.tensor.numel();
  }
  std::vector<std::string> lines;
  for (const auto& [key, counts] : groups) {
    const auto& [algorithm, kind, lr, weight_decay] = key;
    std::ostringstream line;
    line << std::left << std::setw(7) << algorithm << std::setw(10) << kind << std::right
         << std::setw(4) << counts.first << " tensors " << std::setw(13)
         << core::grouped(counts.second) << " parameters  lr " << lr << "  decay " << weight_decay;
    lines.push_back(line.str());
  }
  return lines;
}

}  // namespace parallax::optim
