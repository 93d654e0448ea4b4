// What every registered token mixer must do, checked in float64 inside a small decoder. A new mixer
// is tested by being in the registry.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <torch/autograd.h>

#include "nn/checkpoint.h"
#include "nn/mixers/registry.h"
#include "nn/model_testing.h"
#include "parallax/error.h"
#include "support/temp_folder.h"

namespace parallax::nn {
namespace {

using torch::Tensor;
using namespace testing;

struct Case {
  std::string mixer, variant;
};

ModelConfig make_config(const Case& test_case) {
  ModelConfig config = small_config(test_case.mixer);
  if (test_case.variant == "window") config.sliding_window = 3;
  if (test_case.variant == "plain") config.qk_norm = config.r_norm = config.r_rope = false;
  if (test_case.variant == "biased") config.attention_bias = config.r_proj_bias = true;
  return config;
}

class MixerConformance : public ::testing::TestWithParam<Case> {
 protected:
  ModelConfig config_ = make_config(GetParam());
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const std::string& mixer : mixer_names())
    for (const char* variant : {"qwen3", "window", "plain", "biased"})
      cases.push_back({mixer, variant});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(All, MixerConformance, ::testing::ValuesIn(all_cases()),
                         [](const auto& test) {
                           return test.param.mixer + "_" + test.param.variant;
                         });

TEST_P(MixerConformance, GradientsEqualCentralDifferences) {
  Decoder model = make_model(config_);
  const torch::NoGradGuard no_grad;
  for (auto& parameter : model->parameters())  // biases and gains away from their special values
    parameter += 0.1 * torch::randn_like(parameter);
  const Tensor tokens = random_tokens(config_, {2, 7});
  const Tensor weights = torch::randn({2, 7, config_.hidden_size}, torch::kFloat64);
  const auto loss = [&] { return (model->hidden(tokens) * weights).sum(); };
  {
    const torch::AutoGradMode with_grad(true);
    loss().backward();
  }
  for (auto& item : model->named_parameters()) {
    SCOPED_TRACE(item.key());
    Tensor& parameter = item.value();
    ASSERT_TRUE(parameter.grad().defined());
    const Tensor direction = torch::randn_like(parameter);
    const double analytic = (parameter.grad() * direction).sum().item<double>();
    // The truncation error falls with step^2 and rounding grows with 1 / step: 1e-8 each here.
    constexpr double kStep = 1e-5;
    const Tensor original = parameter.clone();
    parameter.copy_(original + kStep * direction);
    const double above = loss().item<double>();
    parameter.copy_(original - kStep * direction);
    const double below = loss().item<double>();
    parameter.copy_(original);
    const double numeric = (above - below) / (2 * kStep);
    EXPECT_NEAR(analytic, numeric, 1e-6 * (1 + std::abs(numeric)));
  }
}

TEST_P(MixerConformance, LaterTokensDoNotReachEarlierOutputs) {
  Decoder model = make_model(config_);
  const torch::NoGradGuard no_grad;
  const Tensor tokens = random_tokens(config_, {1, 40});
  Tensor changed = tokens.clone();
  changed.slice(1, 17) = (changed.slice(1, 17) + 5) % config_.vocab_size;
  const Tensor before = model->hidden(tokens), after = model->hidden(changed);
  EXPECT_LE(max_difference(before.slice(1, 0, 17), after.slice(1, 0, 17)), 1e-13);
  EXPECT_GT(max_difference(before.slice(1, 17), after.slice(1, 17)), 1e-3);
}

TEST_P(MixerConformance, PrefillAndDecodeOfRaggedBatchesEqualTheFullForward) {
  Decoder model = make_model(config_);
  const torch::NoGradGuard no_grad;
  const Tensor tokens = random_tokens(config_, {4, 19});
  const Tensor full = model->hidden(tokens);
  for (const auto& prefill : std::vector<std::vector<int64_t>>{{19, 19, 19, 19}, {1, 19, 7, 12}}) {
    EXPECT_LE(max_difference(full, decode_all(model, tokens, prefill)), 1e-12);
  }
}

TEST_P(MixerConformance, PackedSequencesEqualSeparateOnes) {
  Decoder model = make_model(config_);
  const std::vector<int64_t> lengths = {9, 0, 1, 14};
  const Tensor tokens = random_tokens(config_, {24});
  const Tensor weights = torch::randn({24, config_.hidden_size}, torch::kFloat64);
  const auto gradients = [&](const Tensor& hidden_NC) {
    return torch::autograd::grad({(hidden_NC * weights).sum()}, model->parameters());
  };
  std::vector<Tensor> separate;
  for (const Tensor& sequence : tokens.split_with_sizes(lengths))
    if (sequence.numel() > 0) separate.push_back(model->hidden(sequence.unsqueeze(0))[0]);
  const Tensor expected = torch::cat(separate);
  const auto expected_gradients = gradients(expected);
  for (const bool checkpointing : {false, true}) {
    model->set_activation_checkpointing(checkpointing);
    const Tensor packed = model->hidden(tokens, torch::tensor({0, 9, 9, 10, 24}, torch::kInt32));
    EXPECT_LE(max_difference(packed, expected), 1e-12);
    const auto packed_gradients = gradients(packed);
    for (size_t i = 0; i < packed_gradients.size(); ++i)
      EXPECT_LE(max_difference(packed_gradients[i], expected_gradients[i]), 1e-10)
          << model->named_parameters().keys()[i];
  }
}

TEST_P(MixerConformance, ASequenceWithoutNewTokensIsLeftAlone) {
  Decoder model = make_model(config_);
  const Tensor tokens = random_tokens(config_, {8});
  DecoderCache cache = poisoned_cache(model, 3, 8);
  model->decode(tokens.slice(0, 0, 5), {2, 0, 3}, cache);
  const Tensor last = model->decode(tokens.slice(0, 5), {0, 2, 1}, cache);
  EXPECT_EQ(cache.num_tokens, (std::vector<int64_t>{2, 2, 4}));
  const Tensor third = torch::cat({tokens.slice(0, 2, 5), tokens.slice(0, 7)}).unsqueeze(0);
  EXPECT_LE(max_difference(model->hidden(third)[0][3], last[2]), 1e-12);
  EXPECT_LE(
      max_difference(model->hidden(tokens.slice(0, 5, 7).unsqueeze(0))[0], last.slice(0, 0, 2)),
      1e-12);
}

TEST_P(MixerConformance, SavedAndLoadedModelsGiveTheSameBits) {
  const test::TempFolder folder;
  Decoder model = make_model(config_, torch::kFloat32);
  save_pretrained(model, folder.path());
  Decoder loaded = load_pretrained(folder.path());
  EXPECT_EQ(loaded->config(), model->config());
  const torch::NoGradGuard no_grad;
  const Tensor tokens = random_tokens(config_, {2, 9});
  EXPECT_TRUE(model->forward(tokens).equal(loaded->forward(tokens)));
}

TEST_P(MixerConformance, CacheHoldsKeysAndValuesOnly) {
  Decoder model = make_model(config_, torch::kFloat32);
  const int64_t per_token = 2 * config_.num_key_value_heads * config_.head_dim * 4;
  EXPECT_EQ(model->make_cache(3, 10).bytes(), config_.num_hidden_layers * 3 * 10 * per_token);
}

TEST(MixerRegistry, AnUnknownNameListsAllMixers) {
  ModelConfig config = small_config("paralax");
  test::expect_error([&] { config.validate(); }, {"\"paralax\"", "softmax, parallax"});
}

}  // namespace
}  // namespace parallax::nn
