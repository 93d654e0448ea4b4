// The decoder as a whole: sizes, twins, caches, activation checkpointing, autocast.
// SPDX-License-Identifier: Apache-2.0
#include "nn/decoder.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

#include "nn/loss.h"
#include "nn/model_testing.h"
#include "parallax/error.h"
#include "support/temp_folder.h"

namespace parallax::nn {
namespace {

using torch::Tensor;
using namespace testing;

/// bf16 autocast on the CPU for a scope.
struct Bf16Autocast {
  Bf16Autocast() {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  }
  ~Bf16Autocast() {
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
  }
};

int64_t count_parameters(const char* recipe) {
  const auto path = std::filesystem::path(PLX_SOURCE_DIR) / "recipes" / "models" / recipe;
  return num_parameters(*Decoder(load_config_file(path), DecoderOptions{.device = torch::kMeta}));
}

TEST(Decoder, ParameterCountsOfThePublishedSizes) {
  EXPECT_EQ(count_parameters("qwen3_0p6b_softmax.json"), 596'049'920);
  EXPECT_EQ(count_parameters("qwen3_0p6b_parallax.json"), 654'773'760);
  EXPECT_EQ(count_parameters("qwen3_1p7b_softmax.json"), 1'720'574'976);
  EXPECT_EQ(count_parameters("qwen3_1p7b_parallax.json"), 1'838'019'072);
}

TEST(Decoder, ParameterCountsOfTheControls) {
  // 24 query heads: W_Q and W_O grow by half, which is W_R's size without its norm.
  EXPECT_EQ(count_parameters("qwen3_0p6b_softmax_24_heads.json"), 654'770'176);
  // Head size 64 and a wider FFN: the FLOPs per token of the softmax model.
  EXPECT_EQ(count_parameters("qwen3_0p6b_parallax_head_64.json"), 658'438'400);
}

TEST(Decoder, TwinsStartFromTheSameValues) {
  const Decoder softmax = make_model(small_config("softmax"), torch::kFloat32);
  const Decoder parallax = make_model(small_config("parallax"), torch::kFloat32);
  const auto shared = parallax->named_parameters();
  EXPECT_EQ(shared.size(), softmax->named_parameters().size() + 2 * 2);
  for (const auto& item : softmax->named_parameters())
    EXPECT_TRUE(item.value().equal(shared[item.key()])) << item.key();
}

TEST(Decoder, ZeroProbeGainMakesParallaxTheSoftmaxModel) {
  ModelConfig config = small_config("parallax");
  config.r_norm_init = 0;
  Decoder softmax = make_model(small_config("softmax"));
  Decoder parallax = make_model(config);
  const torch::NoGradGuard no_grad;
  const Tensor tokens = random_tokens(config, {2, 30});
  EXPECT_LE(max_difference(softmax->forward(tokens), parallax->forward(tokens)), 1e-12);
  config.r_norm_init = 1;
  EXPECT_GT(max_difference(softmax->forward(tokens), make_model(config)->forward(tokens)), 1e-2);
}

TEST(Decoder, LongRaggedPrefillThenSingleTokensEqualTheFullForward) {
  ModelConfig config = small_config("parallax");
  config.hidden_size = 64;
  config.head_dim = 64;
  config.initializer_range = 0.05;
  Decoder model = make_model(config, torch::kFloat32);
  const torch::NoGradGuard no_grad;
  const Tensor tokens = random_tokens(config, {4, 510});
  const Tensor full = model->forward(tokens);
  const Tensor cached = model->logits(decode_all(model, tokens, {500, 510, 487, 499}));
  const double rms = (full - cached).square().mean().sqrt().item<double>() /
                     full.square().mean().sqrt().item<double>();
  EXPECT_LE(rms, 2e-6);  // float32 rounding of two orders of summation
}

std::vector<Tensor> gradients_of(Decoder& model, const Tensor& tokens, bool checkpointing) {
  model->zero_grad();
  model->set_activation_checkpointing(checkpointing);
  const Tensor hidden = model->hidden(tokens).flatten(0, 1);
  auto loss = chunked_cross_entropy(hidden, model->head_weight(), tokens.flatten());
  (loss.sum / loss.count).backward();
  std::vector<Tensor> gradients;
  for (const auto& parameter : model->parameters()) gradients.push_back(parameter.grad().clone());
  return gradients;
}

void expect_same_gradients(Decoder& model, const Tensor& tokens) {
  const auto plain = gradients_of(model, tokens, /*checkpointing=*/false);
  const auto recomputed = gradients_of(model, tokens, /*checkpointing=*/true);
  const auto names = model->named_parameters().keys();
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_TRUE(plain[i].equal(recomputed[i])) << names[i];
    EXPECT_GT(plain[i].abs().max().item<double>(), 0) << names[i];
  }
}

TEST(ActivationCheckpointing, GradientsHaveTheSameBits) {
  Decoder model = make_model(small_config("parallax"), torch::kFloat32);
  expect_same_gradients(model, random_tokens(model->config(), {2, 33}));
}

TEST(ActivationCheckpointing, GradientsHaveTheSameBitsUnderAutocast) {
  Decoder model = make_model(small_config("parallax"), torch::kFloat32);
  const Bf16Autocast autocast;
  expect_same_gradients(model, random_tokens(model->config(), {2, 33}));
}

TEST(ActivationCheckpointing, RemembersAutocastOfTheForwardPass) {
  Decoder model = make_model(small_config("parallax"), torch::kFloat32);
  model->set_activation_checkpointing(true);
  const Tensor tokens = random_tokens(model->config(), {1, 20});
  const auto gradient = [&](bool backward_inside) {
    model->zero_grad();
    Tensor loss;
    {
      const Bf16Autocast autocast;
      loss = model->hidden(tokens).square().sum();
      if (backward_inside) loss.backward();
    }
    if (!backward_inside) loss.backward();
    return model->parameters()[1].grad().clone();
  };
  EXPECT_TRUE(gradient(true).equal(gradient(false)));
}

TEST(ActivationCheckpointing, FrozenParametersStayWithoutGradient) {
  Decoder model = make_model(small_config("parallax"), torch::kFloat32);
  model->set_activation_checkpointing(true);
  auto parameters = model->named_parameters();
  parameters["model.embed_tokens.weight"].requires_grad_(false);
  parameters["model.layers.0.self_attn.q_proj.weight"].requires_grad_(false);
  model->hidden(random_tokens(model->config(), {1, 5})).square().sum().backward();
  EXPECT_FALSE(parameters["model.layers.0.self_attn.q_proj.weight"].grad().defined());
  EXPECT_TRUE(parameters["model.layers.0.self_attn.r_proj.weight"].grad().defined());
}

TEST(Decoder, AutocastStaysCloseToFloat32AndKeepsTheStreamWide) {
  for (const char* mixer : {"softmax", "parallax"}) {
    Decoder model = make_model(small_config(mixer), torch::kFloat32);
    const torch::NoGradGuard no_grad;
    const Tensor tokens = random_tokens(model->config(), {2, 40});
    const Tensor wide = model->hidden(tokens);
    const Bf16Autocast autocast;
    const Tensor narrow = model->hidden(tokens);
    EXPECT_EQ(narrow.scalar_type(), torch::kFloat32);
    const double rms = (wide - narrow).square().mean().sqrt().item<double>();
    EXPECT_GT(rms, 1e-5);  // bf16 was used
    EXPECT_LT(rms, 3e-2);  // hidden states have rms 1; bf16 rounds at 4e-3, in a chain of about 20
    EXPECT_EQ(dynamic_cast<KvCache&>(*model->make_cache(1, 4).layers[0]).k.scalar_type(),
              torch::kBFloat16);
  }
}

TEST(Decoder, TokensOutOfRangeAreNamed) {
  Decoder model = make_model(small_config("softmax"));
  for (const int64_t wrong : {int64_t{-1}, int64_t{61}}) {
    test::expect_error([&] { model->hidden(torch::tensor({{int64_t{3}, wrong}})); },
                       {"token id " + std::to_string(wrong), "0 to 60"});
  }
  EXPECT_THROW(model->hidden(torch::zeros({2, 3})), Error);
  EXPECT_THROW(model->hidden(torch::zeros({3}, torch::kInt64)), Error);
}

TEST(Decoder, BoundariesThatDoNotCoverThePackedTokensAreNamed) {
  Decoder model = make_model(small_config("parallax"));
  const Tensor tokens = random_tokens(model->config(), {6});
  for (const auto& wrong : std::vector<std::vector<int32_t>>{{0, 5}, {1, 6}, {0, 4, 3, 6}, {6}}) {
    const Tensor cu_seqlens = torch::tensor(wrong, torch::kInt32);
    test::expect_error([&] { model->hidden(tokens, cu_seqlens); }, {"rise from 0 to 6"});
  }
  test::expect_error([&] { model->hidden(tokens, torch::tensor({0, 6}, torch::kInt64)); },
                     {"int32 [B + 1]"});
  test::expect_error(
      [&] { model->hidden(tokens.unsqueeze(0), torch::tensor({0, 6}, torch::kInt32)); },
      {"packed tokens must be [total]"});
}

/// The layer case of the acceptance suite: 4 layers, 4 sequences of 1024 tokens, 4 heads, bfloat16.
TEST(Decoder, PackedSequencesEqualABatchOfTheSameTokensInBFloat16) {
  for (const int64_t head_dim : {64, 128}) {
    ModelConfig config = small_config("parallax");
    config.num_hidden_layers = 4;
    config.hidden_size = config.intermediate_size = 4 * head_dim;
    config.num_attention_heads = config.num_key_value_heads = 4;
    config.head_dim = head_dim;
    config.initializer_range = 0.05;
    Decoder model = make_model(config, torch::kBFloat16);
    const Tensor tokens = random_tokens(config, {4, 1024});
    const Tensor cu_seqlens = torch::arange(0, 4097, 1024, torch::kInt32);
    const Tensor dense = model->hidden(tokens).flatten(0, 1);
    const Tensor packed = model->hidden(tokens.flatten(), cu_seqlens);
    const Tensor expected = dense.to(torch::kFloat64);
    const Tensor difference = packed.to(torch::kFloat64) - expected;
    const auto rms = [](const Tensor& x) { return x.square().mean().sqrt().item<double>(); };
    const auto max = [](const Tensor& x) { return x.abs().max().item<double>(); };
    EXPECT_LE(rms(difference) / rms(expected), 1e-3);
    // One unit in the last place of the largest value.
    EXPECT_LE(max(difference) / max(expected), 0x1p-7);
    std::printf("[          ] D %d: rms %.2e, max %.2e\n", static_cast<int>(head_dim),
                rms(difference) / rms(expected), max(difference) / max(expected));
    packed.square().sum().backward();
    for (const auto& item : model->named_parameters())
      EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
  }
}

TEST(Decoder, AFullCacheIsAnErrorAndStaysAsItWas) {
  Decoder model = make_model(small_config("parallax"));
  DecoderCache cache = model->make_cache(2, 4);
  const Tensor tokens = random_tokens(model->config(), {6});
  model->decode(tokens, {4, 2}, cache);
  test::expect_error([&] { model->decode(tokens.slice(0, 0, 2), {1, 1}, cache); },
                     {"sequence 0 holds 4", "capacity is 4"});
  EXPECT_EQ(cache.num_tokens, (std::vector<int64_t>{4, 2}));
  EXPECT_THROW(model->decode(tokens.slice(0, 0, 2), {0, 1}, cache), Error);  // counts do not add up
  EXPECT_THROW(model->decode(tokens.slice(0, 0, 1), {1}, cache), Error);     // one count too few
}

TEST(Decoder, FlopsCountEveryWeightAndVisiblePair) {
  const ModelConfig config = small_config("softmax");
  const double tokens = 10, pairs = 10 * 11 / 2, heads = 4, head_dim = 12;
  const double weights = 2 * (24.0 * 48 * 2 + 24.0 * 24 * 2 + 3 * 24.0 * 40) + 24.0 * 61;
  const double softmax = 2 * weights * tokens + 2 * pairs * heads * head_dim * 4;
  EXPECT_DOUBLE_EQ(make_model(config)->flops(10), softmax);
  const double probe = 2 * (2 * 24.0 * 48 * tokens + pairs * heads * head_dim * 4);
  EXPECT_DOUBLE_EQ(make_model(small_config("parallax"))->flops(10), softmax + probe);
  ModelConfig windowed = config;
  windowed.sliding_window = 3;
  const double window_pairs = 1 + 2 + 8 * 3;
  EXPECT_DOUBLE_EQ(make_model(windowed)->flops(10),
                   softmax - 2 * (pairs - window_pairs) * heads * head_dim * 4);
}

}  // namespace
}  // namespace parallax::nn
