// Loss and accuracy of given targets against plain formulas over the full logits.
// SPDX-License-Identifier: Apache-2.0
#include "evaluate/score.h"

#include <gtest/gtest.h>

#include <cmath>

#include "nn/loss.h"
#include "parallax/error.h"
#include "support/tiny_model.h"

namespace parallax::evaluate {
namespace {

ScoredBatch random_batch(int64_t batch_size, int64_t length, int64_t vocab_size) {
  return {torch::randint(vocab_size, {batch_size, length}, torch::kInt64),
          torch::randint(vocab_size, {batch_size, length}, torch::kInt64)};
}

TEST(ScoreBatch, EqualsTheFullLogitsAndSkipsIgnoredTargets) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  ScoredBatch batch = random_batch(3, 20, 257);
  const torch::NoGradGuard no_grad;
  const torch::Tensor log_probs =
      torch::log_softmax(model->forward(batch.tokens_BT).to(torch::kFloat64), -1);
  batch.targets_BT.index_put_({torch::indexing::Slice(), torch::indexing::Slice(0, 5)}, -100);
  batch.targets_BT[1][7] = log_probs[1][7].argmax();  // at least one is right
  double nats = 0.0;
  int64_t correct = 0;
  for (int64_t b = 0; b < 3; ++b) {
    for (int64_t t = 5; t < 20; ++t) {
      const auto target = batch.targets_BT[b][t].item<int64_t>();
      nats -= log_probs[b][t][target].item<double>();
      correct += log_probs[b][t].argmax().item<int64_t>() == target ? 1 : 0;
    }
  }
  for (const int64_t chunk : {1, 7, 45, 1000}) {
    const Score score = score_batch(model, batch, chunk);
    EXPECT_EQ(score.num_targets, 45);
    EXPECT_EQ(score.num_correct, correct);
    // Each loss is a float32 of about 6 with a relative error of a few 2^-24.
    EXPECT_NEAR(score.sum_nats, nats, 45 * 6 * 8 * 0x1p-24) << "chunk " << chunk;
  }
}

TEST(ScoreBatch, UniformLogitsGiveTheLogarithmOfTheVocabulary) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : model->named_parameters()) {
      if (parameter.key() == "model.norm.weight") parameter.value().zero_();
    }
  }
  const Score score = score_batch(model, random_batch(2, 30, 257));
  EXPECT_NEAR(score.loss(), std::log(257.0), 1e-6);
  EXPECT_NEAR(score.perplexity(), 257.0, 257.0 * 1e-6);
}

TEST(ScoreBatch, LeavesTheModelAsItWas) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  for (const bool training : {true, false}) {
    model->train(training);
    score_batch(model, random_batch(1, 4, 257));
    EXPECT_EQ(model->is_training(), training);
  }
  for (const auto& parameter : model->parameters()) EXPECT_FALSE(parameter.grad().defined());
}

TEST(ScoreBatch, NoTargetsGiveAnEmptyScore) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  ScoredBatch batch = random_batch(1, 4, 257);
  batch.targets_BT.fill_(nn::kIgnoreIndex);
  const Score score = score_batch(model, batch);
  EXPECT_EQ(score.num_targets, 0);
  EXPECT_EQ(score.loss(), 0.0);
  EXPECT_EQ(score.accuracy(), 0.0);
}

TEST(ScoreBatch, RefusesBadInput) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  ScoredBatch batch = random_batch(2, 4, 257);
  EXPECT_THROW(score_batch(model, {batch.tokens_BT, batch.targets_BT.narrow(1, 0, 3)}), Error);
  batch.targets_BT[0][2] = 257;
  EXPECT_THROW(score_batch(model, batch), Error);
  batch.targets_BT[0][2] = -1;
  EXPECT_THROW(score_batch(model, batch), Error);
  batch.targets_BT[0][2] = 0;
  batch.tokens_BT[1][1] = 257;
  EXPECT_THROW(score_batch(model, batch), Error);
}

TEST(ScoreBatch, RefusesALossThatIsNotFinite) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  const torch::NoGradGuard no_grad;
  model->named_parameters()["model.norm.weight"].fill_(std::nanf(""));
  EXPECT_THROW(score_batch(model, random_batch(1, 4, 257)), Error);
}

TEST(Evaluate, SumsOverAllBatches) {
  nn::Decoder model = test::tiny_model(test::tiny_config());
  const std::vector<ScoredBatch> batches = {random_batch(2, 9, 257), random_batch(1, 5, 257)};
  Score expected;
  for (const ScoredBatch& batch : batches) expected += score_batch(model, batch);
  size_t next = 0;
  const Score total = evaluate(model, [&]() -> std::optional<ScoredBatch> {
    if (next == batches.size()) return std::nullopt;
    return batches[next++];
  });
  EXPECT_EQ(total.num_targets, 23);
  EXPECT_EQ(total.sum_nats, expected.sum_nats);
}

}  // namespace
}  // namespace parallax::evaluate
