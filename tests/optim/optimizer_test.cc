// Muon, AdamW and the groups over them: one step against the formula, splits, decay, state.
// The trajectories of several steps are compared with PyTorch's in tests/python/test_optim.py.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "optim/param_groups.h"
#include "parallax/error.h"

namespace parallax::optim {
namespace {

torch::Tensor parameter(torch::IntArrayRef shape, uint64_t seed) {
  auto generator = torch::make_generator<torch::CPUGeneratorImpl>(seed);
  return torch::randn(shape, generator).requires_grad_();
}

void set_gradients(const NamedTensors& parameters, uint64_t seed) {
  for (const auto& [name, tensor] : parameters)
    torch::Tensor(tensor).mutable_grad() = parameter(tensor.sizes(), seed++).detach();
}

NamedTensors small_model() {
  return {{"model.embed_tokens.weight", parameter({11, 8}, 1)},
          {"model.layers.0.self_attn.q_proj.weight", parameter({12, 8}, 2)},
          {"model.layers.0.self_attn.q_proj.bias", parameter({12}, 3)},
          {"model.layers.0.self_attn.q_norm.weight", parameter({4}, 4)},
          {"lm_head.weight", parameter({11, 8}, 5)}};
}

TEST(Muon, FirstStepIsTheOrthogonalisedGradientTimesTheFactor) {
  for (const auto scaling : {MuonScaling::kOriginal, MuonScaling::kMatchRmsAdamW}) {
    const auto matrix = parameter({12, 8}, 1);
    const auto before = matrix.detach().clone();
    set_gradients({{"w", matrix}}, 2);
    Muon muon({{.name = "w", .tensor = matrix, .lr = 0.1}}, {.scaling = scaling});
    muon.step({.lr = 0.5});
    const double factor =
        scaling == MuonScaling::kOriginal ? std::sqrt(12.0 / 8.0) : 0.2 * std::sqrt(12.0);
    const auto expected = before - 0.05 * factor * newton_schulz(matrix.grad());
    EXPECT_TRUE(torch::allclose(matrix, expected, 0, 1e-6));
  }
}

TEST(Muon, SplitsFusedMatricesBeforeOrthogonalising) {
  const auto first = parameter({8, 6}, 1), second = parameter({4, 6}, 2);
  const auto fused = torch::cat({first, second}).detach().requires_grad_();
  set_gradients({{"a", first}, {"b", second}}, 7);
  torch::Tensor(fused).mutable_grad() = torch::cat({first.grad(), second.grad()});
  Muon separate({{.name = "a", .tensor = first, .lr = 0.1, .weight_decay = 0.1},
                 {.name = "b", .tensor = second, .lr = 0.1, .weight_decay = 0.1}},
                {});
  Muon together(
      {{.name = "f", .tensor = fused, .lr = 0.1, .weight_decay = 0.1, .row_splits = {8, 4}}}, {});
  for (int step = 0; step < 3; ++step) separate.step({}), together.step({});
  EXPECT_TRUE(torch::equal(fused, torch::cat({first, second})));
}

TEST(Muon, RefusesVectorsAndSplitsThatDoNotFit) {
  EXPECT_THROW(Muon({{.name = "v", .tensor = torch::zeros({4})}}, {}), Error);
  EXPECT_THROW(Muon({{.name = "w", .tensor = torch::zeros({4, 4}), .row_splits = {2, 3}}}, {}),
               Error);
}

TEST(Optimizer, ZeroGradientsOnlyDecay) {
  const auto parameters = small_model();
  std::vector<torch::Tensor> before;
  for (const auto& [name, tensor] : parameters) {
    before.push_back(tensor.detach().clone());
    torch::Tensor(tensor).mutable_grad() = torch::zeros_like(tensor);
  }
  const OptimizerOptions options{.lr = 0.1, .weight_decay = 0.2, .embedding_lr_multiplier = 0.5};
  const auto plan = plan_parameters(parameters, options);
  make_optimizer(plan, options)->step({.lr = 0.5, .weight_decay = 0.5});
  const double expected[] = {1 - 0.025 * 0.1, 1 - 0.05 * 0.1, 1, 1, 1 - 0.025 * 0.1};
  for (size_t i = 0; i < parameters.size(); ++i)
    EXPECT_TRUE(torch::allclose(parameters[i].second, before[i] * expected[i], 1e-6, 0))
        << parameters[i].first;
}

TEST(Optimizer, LeavesParametersWithoutGradientAlone) {
  const auto parameters = small_model();
  std::vector<torch::Tensor> before;
  for (const auto& [name, tensor] : parameters) before.push_back(tensor.detach().clone());
  make_optimizer(plan_parameters(parameters, {}), {})->step({});
  for (size_t i = 0; i < parameters.size(); ++i)
    EXPECT_TRUE(torch::equal(parameters[i].second, before[i]));
}

TEST(ParamGroups, MuonGetsHiddenMatricesAndAdamwTheRest) {
  const OptimizerOptions options{
      .lr = 1, .weight_decay = 0.1, .embedding_lr_multiplier = 0.3, .norm_lr_multiplier = 0.015};
  const auto plan = plan_parameters(small_model(), options);
  const char* kinds[] = {"embedding", "hidden", "bias", "gain", "embedding"};
  const double lrs[] = {0.3, 1, 0.015, 0.015, 0.3};
  for (size_t i = 0; i < plan.size(); ++i) {
    EXPECT_EQ(plan[i].kind, kinds[i]);
    EXPECT_DOUBLE_EQ(plan[i].lr, lrs[i]);
    EXPECT_EQ(plan[i].algorithm, i == 1 ? Algorithm::kMuon : Algorithm::kAdamW);
    EXPECT_EQ(plan[i].weight_decay, i == 2 || i == 3 ? 0 : 0.1);
  }
}

TEST(ParamGroups, LaterRulesWinFieldByField) {
  const OptimizerOptions options{
      .lr = 1,
      .rules = {{.pattern = "*q_proj*", .algorithm = Algorithm::kAdamW, .lr_multiplier = 0.5},
                {.pattern = "*.weight", .lr_multiplier = 0.25, .weight_decay = 0.7}}};
  const auto plan = plan_parameters(small_model(), options);
  EXPECT_EQ(plan[1].algorithm, Algorithm::kAdamW);
  EXPECT_EQ(plan[1].lr, 0.25);
  EXPECT_EQ(plan[1].weight_decay, 0.7);
  EXPECT_EQ(plan[2].lr, 0.5);
  EXPECT_EQ(plan[2].weight_decay, 0);
}

TEST(ParamGroups, RefusesRulesThatMatchNothingOrGiveMuonAVector) {
  EXPECT_THROW(plan_parameters(small_model(), {.rules = {{.pattern = "*r_proj*"}}}), Error);
  for (const char* pattern : {"*q_norm*", "lm_head.weight"})
    EXPECT_THROW(plan_parameters(small_model(),
                                 {.rules = {{.pattern = pattern, .algorithm = Algorithm::kMuon}}}),
                 Error);
}

TEST(Optimizer, ContinuesBitForBitFromItsState) {
  const auto run = [](int first_steps, int second_steps) {
    auto parameters = small_model();
    const auto plan = plan_parameters(parameters, {});
    auto optimizer = make_optimizer(plan, {});
    for (int step = 0; step < first_steps + second_steps; ++step) {
      if (step == first_steps) {
        std::map<std::string, torch::Tensor> saved;
        for (const auto& [name, tensor] : optimizer->state()) saved[name] = tensor.clone();
        optimizer = make_optimizer(plan, {});
        optimizer->load_state(saved);
      }
      set_gradients(parameters, static_cast<uint64_t>(100 * step));
      optimizer->step({});
    }
    return parameters;
  };
  const auto whole = run(10, 0), resumed = run(5, 5);
  for (size_t i = 0; i < whole.size(); ++i)
    EXPECT_TRUE(torch::equal(whole[i].second, resumed[i].second)) << whole[i].first;
}

TEST(Optimizer, RefusesStateThatDoesNotFit) {
  const auto optimizer = make_optimizer(plan_parameters(small_model(), {}), {});
  const auto good = optimizer->state();
  auto missing = good;
  missing.erase("model.layers.0.self_attn.q_proj.weight.momentum");
  EXPECT_THROW(optimizer->load_state(missing), Error);
  auto unknown = good;
  unknown["model.other.weight.momentum"] = torch::zeros({1});
  EXPECT_THROW(optimizer->load_state(unknown), Error);
  auto misshapen = good;
  misshapen["lm_head.weight.exp_avg"] = torch::zeros({3});
  EXPECT_THROW(optimizer->load_state(misshapen), Error);
}

}  // namespace
}  // namespace parallax::optim
