// Windows cover every token once, and their losses are those of the documented conditioning.
// SPDX-License-Identifier: Apache-2.0
#include "evaluate/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "parallax/error.h"
#include "support/tiny_model.h"

namespace parallax::evaluate {
namespace {

std::vector<int32_t> random_tokens(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 256);
  return tokens;
}

/// -log p(tokens[position] | the `num_before` ids before it, the start token 256 included).
double conditional_nats(nn::Decoder& model, const std::vector<int32_t>& tokens, int64_t position,
                        int64_t num_before) {
  const torch::NoGradGuard no_grad;
  std::vector<int64_t> context;
  for (int64_t i = position - num_before; i < position; ++i) {
    context.push_back(i < 0 ? 256 : tokens[static_cast<size_t>(i)]);
  }
  const torch::Tensor logits = model->forward(torch::tensor(context).unsqueeze(0))[0][-1];
  return -torch::log_softmax(logits.to(torch::kFloat64), -1)[tokens[static_cast<size_t>(position)]]
              .item<double>();
}

TEST(Windows, DisjointOnesByHand) {
  const auto windows = make_windows(10, 4, 4);
  ASSERT_EQ(windows.size(), 3u);
  const std::vector<std::vector<int64_t>> expected = {{0, 4, 4}, {4, 4, 4}, {8, 2, 2}};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ((std::vector<int64_t>{windows[i].begin, windows[i].size, windows[i].num_scored}),
              expected[i]);
  }
}

TEST(Windows, OverlappingOnesByHand) {
  const auto windows = make_windows(10, 4, 3);
  const std::vector<std::vector<int64_t>> expected = {{0, 4, 4}, {3, 4, 3}, {6, 4, 3}};
  ASSERT_EQ(windows.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ((std::vector<int64_t>{windows[i].begin, windows[i].size, windows[i].num_scored}),
              expected[i]);
  }
}

TEST(Windows, ScoreEveryTokenOnceWithEnoughBeforeIt) {
  for (int64_t num_tokens = 0; num_tokens < 40; ++num_tokens) {
    for (int64_t context = 1; context < 12; ++context) {
      for (int64_t stride = 1; stride <= context; ++stride) {
        int64_t next = 0;
        for (const Window& window : make_windows(num_tokens, context, stride)) {
          ASSERT_LE(window.size, context);
          ASSERT_GE(window.num_scored, 1);
          const int64_t first_scored = window.begin + window.size - window.num_scored;
          ASSERT_EQ(first_scored, next);
          const int64_t least = std::min(first_scored, context - stride);
          ASSERT_GE(first_scored - window.begin, least);
          next = window.begin + window.size;
        }
        ASSERT_EQ(next, num_tokens);
      }
    }
  }
}

TEST(Perplexity, ConditionsAsDocumented) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  const std::vector<int32_t> tokens = random_tokens(11, 1);
  struct Case {
    int64_t context, stride;
    std::vector<int64_t> num_before;  // of each token, start token included
  };
  const std::vector<Case> cases = {
      {4, 0, {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3}},
      {4, 2, {1, 2, 3, 4, 3, 4, 3, 4, 3, 4, 3}},
      {16, 0, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
      {1, 1, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
  };
  for (const Case& c : cases) {
    double expected = 0.0;
    for (int64_t i = 0; i < 11; ++i) {
      expected += conditional_nats(model, tokens, i, c.num_before[static_cast<size_t>(i)]);
    }
    PerplexityMeter meter(
        model, {.context = c.context, .stride = c.stride, .batch_size = 2, .start_token = 256});
    meter.add_document(tokens, 11);
    const PerplexityResult result = meter.finish();
    EXPECT_EQ(result.score.num_targets, 11);
    EXPECT_NEAR(result.score.sum_nats, expected, 1e-4) << c.context << ' ' << c.stride;
    EXPECT_NEAR(result.bits_per_byte(), expected / (11 * std::log(2.0)), 1e-5);
  }
}

TEST(Perplexity, DocumentsDoNotSeeEachOther) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  const std::vector<std::vector<int32_t>> documents = {
      random_tokens(13, 2), random_tokens(3, 3), {}, random_tokens(7, 4)};
  const PerplexityOptions options{.context = 5, .batch_size = 4, .start_token = 256};
  double alone = 0.0;
  for (const auto& document : documents) {
    PerplexityMeter meter(model, options);
    meter.add_document(document, 1);
    alone += meter.finish().score.sum_nats;
  }
  PerplexityMeter meter(model, options);
  for (const auto& document : documents) meter.add_document(document, 10);
  const PerplexityResult together = meter.finish();
  EXPECT_EQ(together.num_documents, 4);
  EXPECT_EQ(together.num_bytes, 40);
  EXPECT_EQ(together.score.num_targets, 23);
  EXPECT_NEAR(together.score.sum_nats, alone, 1e-4);
}

TEST(Perplexity, NoDocumentsGiveZeros) {
  PerplexityMeter meter(test::tiny_model(test::tiny_config()), {.context = 8, .start_token = 256});
  const PerplexityResult result = meter.finish();
  EXPECT_EQ(result.score.num_targets, 0);
  EXPECT_EQ(result.bits_per_byte(), 0.0);
}

TEST(Perplexity, RefusesOptionsOutOfRange) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  const auto make = [&](const PerplexityOptions& options) {
    PerplexityMeter meter(model, options);
  };
  EXPECT_THROW(make({.context = 0}), Error);
  EXPECT_THROW(make({.context = 257}), Error);  // max_position_embeddings is 256
  EXPECT_THROW(make({.context = 8, .stride = 9}), Error);
  EXPECT_THROW(make({.context = 8, .stride = -1}), Error);
  EXPECT_THROW(make({.context = 8, .batch_size = 0}), Error);
  EXPECT_THROW(make({.context = 8, .start_token = 257}), Error);
}

TEST(Perplexity, RefusesTokenIdsOutOfRange) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  PerplexityMeter meter(model, {.context = 8, .batch_size = 1});
  const std::vector<int32_t> tokens = {1, 2, 300};
  EXPECT_THROW(meter.add_document(tokens, 3), Error);
}

}  // namespace
}  // namespace parallax::evaluate
