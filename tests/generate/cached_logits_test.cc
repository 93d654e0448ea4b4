// The acceptance case of generation: prefill of sequences of unequal length, then token by token,
// every logit against the forward pass without a cache. Upstream pads shorter prompts on the left;
// the model here packs them instead, and left padding is tested where it exists: parallax.decode.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>

#include "support/tiny_model.h"

namespace parallax::generate {
namespace {

/// Two layers of 8 heads x 64, as the reference suite of the flash-linear-attention project has it.
nn::Decoder make_model(const std::string& mixer) {
  nn::ModelConfig config = test::tiny_config({mixer});
  config.hidden_size = 512;
  config.intermediate_size = 512;
  config.num_attention_heads = 8;
  config.num_key_value_heads = 4;
  config.head_dim = 64;
  config.max_position_embeddings = 2048;
  config.initializer_range = 0.05;
  return test::tiny_model(config);
}

double rms(const torch::Tensor& x) {
  return x.to(torch::kFloat64).square().mean().sqrt().item<double>();
}

struct Difference {
  double rms = 0.0, max = 0.0;  // relative to the reference's rms and maximum
};

Difference compare(const torch::Tensor& result, const torch::Tensor& reference) {
  const torch::Tensor difference = (result.to(torch::kFloat64) - reference.to(torch::kFloat64));
  return {rms(difference) / rms(reference),
          difference.abs().max().item<double>() / reference.abs().max().item<double>()};
}

/// Logits [T, V] of each sequence without a cache.
std::vector<torch::Tensor> uncached(nn::Decoder& model, const std::vector<torch::Tensor>& tokens) {
  std::vector<torch::Tensor> logits;
  for (const torch::Tensor& tokens_T : tokens) {
    logits.push_back(model->forward(tokens_T.unsqueeze(0))[0].to(torch::kFloat32));
  }
  return logits;
}

/// The same logits by a packed prefill of num_prefill tokens each and one token per step after it.
std::vector<torch::Tensor> cached(nn::Decoder& model, const std::vector<torch::Tensor>& tokens,
                                  int64_t num_prefill) {
  int64_t longest = 0;
  for (const torch::Tensor& tokens_T : tokens) longest = std::max(longest, tokens_T.size(0));
  nn::DecoderCache cache = model->make_cache(static_cast<int64_t>(tokens.size()), longest);
  std::vector<std::vector<torch::Tensor>> parts(tokens.size());
  for (int64_t begin = 0, end = num_prefill; begin < longest; begin = end++) {
    std::vector<torch::Tensor> packed;
    std::vector<int64_t> num_new;
    for (const torch::Tensor& tokens_T : tokens) {
      const int64_t length = tokens_T.size(0);
      const int64_t first = std::min(begin, length), last = std::min(end, length);
      num_new.push_back(last - first);
      packed.push_back(tokens_T.slice(0, first, last));
    }
    const torch::Tensor logits =
        model->logits(model->decode(torch::cat(packed), num_new, cache)).to(torch::kFloat32);
    int64_t at = 0;
    for (size_t b = 0; b < tokens.size(); at += num_new[b++]) {
      parts[b].push_back(logits.narrow(0, at, num_new[b]));
    }
  }
  std::vector<torch::Tensor> logits;
  for (const auto& parts_of_sequence : parts) logits.push_back(torch::cat(parts_of_sequence));
  return logits;
}

class CachedLogits : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const int64_t length : {540, 521, 503, 532}) {
      tokens_.push_back(torch::randint(257, {length}, torch::kInt64));
    }
  }
  const torch::NoGradGuard no_grad_;
  nn::Decoder model_ = make_model(GetParam());
  std::vector<torch::Tensor> tokens_;
};

TEST_P(CachedLogits, EqualUncachedOnesInFloat32) {
  const auto reference = uncached(model_, tokens_), result = cached(model_, tokens_, 500);
  for (size_t b = 0; b < tokens_.size(); ++b) {
    const Difference difference = compare(result[b], reference[b]);
    // Two roundings of the same sums, 2^-24 each, through two layers; upstream allows 2e-3 in fp16.
    EXPECT_LT(difference.rms, 1e-5) << "sequence " << b;
    EXPECT_LT(difference.max, 1e-5) << "sequence " << b;
    RecordProperty("rms_" + std::to_string(b), std::to_string(difference.rms));
    std::printf("[          ] sequence %zu: rms %.2e, max %.2e\n", b, difference.rms,
                difference.max);
  }
}

TEST_P(CachedLogits, AreAsGoodAsUncachedOnesInBFloat16) {
  const auto exact = uncached(model_, tokens_);
  model_->to(torch::kBFloat16);
  const auto plain = uncached(model_, tokens_), result = cached(model_, tokens_, 500);
  for (size_t b = 0; b < tokens_.size(); ++b) {
    const Difference bound = compare(plain[b], exact[b]), error = compare(result[b], exact[b]);
    EXPECT_LT(error.rms, 2 * bound.rms) << "sequence " << b;
    EXPECT_LT(error.max, 2 * bound.max) << "sequence " << b;
    std::printf("[          ] sequence %zu: rms %.2e (uncached %.2e), max %.2e (uncached %.2e)\n",
                b, error.rms, bound.rms, error.max, bound.max);
  }
}

/// The case at its full size: 2,000 tokens, the longest sequence a prefill and 1,500 steps.
TEST(CachedLogitsSlow, OfTwoThousandTokensEqualUncachedOnesInFloat16) {
  const torch::NoGradGuard no_grad;
  nn::Decoder model = make_model("parallax");
  std::vector<torch::Tensor> tokens;
  for (const int64_t length : {2000, 1731, 1210, 500})
    tokens.push_back(torch::randint(257, {length}, torch::kInt64));
  const auto exact = uncached(model, tokens);
  model->to(torch::kFloat16);
  const auto plain = uncached(model, tokens), result = cached(model, tokens, 500);
  for (size_t b = 0; b < tokens.size(); ++b) {
    const Difference difference = compare(result[b], plain[b]);
    EXPECT_LT(difference.rms, 2e-3) << "sequence " << b;
    const Difference bound = compare(plain[b], exact[b]), error = compare(result[b], exact[b]);
    EXPECT_LT(error.max, 2 * bound.max) << "sequence " << b;
    std::printf(
        "[          ] sequence %zu: rms %.2e, max %.2e; from float32 %.2e (uncached %.2e)\n", b,
        difference.rms, difference.max, error.max, bound.max);
  }
}

INSTANTIATE_TEST_SUITE_P(Mixers, CachedLogits, testing::Values("parallax", "softmax"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace parallax::generate
