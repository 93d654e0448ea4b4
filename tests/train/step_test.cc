// Gradients of a step, evaluation, and the recall source.
// SPDX-License-Identifier: Apache-2.0
#include "train/step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "parallax/error.h"
#include "train/evaluation.h"
#include "train/recall_source.h"

namespace parallax::train {
namespace {

constexpr mad::InContextRecallOptions kTask{.vocab_size = 16, .length = 16, .seed = 5};

nn::Decoder tiny_model() {
  nn::ModelConfig config;
  config.vocab_size = 16;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 64;
  torch::manual_seed(1);
  return nn::Decoder(config);
}

StepResult compute_gradients(const nn::Decoder& model, const Batch& batch,
                             const StepOptions& options) {
  return StepGradients(model, options).compute(batch);
}

torch::Tensor all_gradients(const nn::Decoder& model) {
  std::vector<torch::Tensor> parts;
  for (const auto& parameter : model->parameters())
    parts.push_back(parameter.grad().flatten().clone());
  return torch::cat(parts);
}

double relative_error(const torch::Tensor& given, const torch::Tensor& expected) {
  return ((given - expected).norm() / expected.norm()).item<double>();
}

TEST(ComputeGradients, MicroBatchesAddUpToTheWholeBatch) {
  auto model = tiny_model();
  // Recalled values only: the micro-batches have different numbers of targets.
  const Batch batch = RecallSource(kTask, RecallTargets::kRecalledValues).next(6);
  const auto whole = compute_gradients(model, batch, {.micro_batch_size = 6});
  const auto expected = all_gradients(model);
  for (const int64_t size : {1, 2, 4}) {
    const auto split = compute_gradients(model, batch, {.micro_batch_size = size});
    EXPECT_NEAR(split.loss, whole.loss, 1e-6);
    EXPECT_LT(relative_error(all_gradients(model), expected), 1e-5) << size;
  }
}

TEST(ComputeGradients, ClipsTheNormOfTheWholeGradient) {
  auto model = tiny_model();
  const Batch batch = RecallSource(kTask, RecallTargets::kEveryToken).next(4);
  const auto free = compute_gradients(model, batch, {.micro_batch_size = 4});
  EXPECT_NEAR(all_gradients(model).norm().item<double>(), free.grad_norm, 1e-5 * free.grad_norm);
  const double limit = free.grad_norm / 3;
  const auto clipped = compute_gradients(model, batch, {.micro_batch_size = 4, .clip_norm = limit});
  EXPECT_EQ(clipped.grad_norm, free.grad_norm);
  EXPECT_NEAR(all_gradients(model).norm().item<double>(), limit, 1e-4 * limit);
}

TEST(ComputeGradients, InBfloat16StayNearFloat32AndAreStoredInFloat32) {
  auto model = tiny_model();
  const Batch batch = RecallSource(kTask, RecallTargets::kEveryToken).next(8);
  compute_gradients(model, batch, {.micro_batch_size = 8});
  const auto expected = all_gradients(model);
  const auto result =
      compute_gradients(model, batch, {.micro_batch_size = 8, .compute = torch::kBFloat16});
  const auto given = all_gradients(model);
  EXPECT_EQ(given.dtype(), torch::kFloat32);
  // A few rounded products one after the other, each within 2^-8.
  EXPECT_LT(relative_error(given, expected), 16.0 / 256);
  EXPECT_GT(relative_error(given, expected), 1e-5) << "bfloat16 was not used";
  EXPECT_TRUE(std::isfinite(result.loss));
}

TEST(ComputeGradients, CheckpointingChangesNoBit) {
  auto model = tiny_model();
  const Batch batch = RecallSource(kTask, RecallTargets::kEveryToken).next(4);
  for (const auto compute : {torch::kFloat32, torch::kBFloat16}) {
    const StepOptions options{.micro_batch_size = 2, .compute = compute};
    model->set_activation_checkpointing(false);
    compute_gradients(model, batch, options);
    const auto expected = all_gradients(model);
    model->set_activation_checkpointing(true);
    compute_gradients(model, batch, options);
    EXPECT_TRUE(torch::equal(all_gradients(model), expected)) << compute;
  }
}

TEST(ComputeGradients, NamesTheFirstTensorThatIsNotFinite) {
  auto model = tiny_model();
  const Batch batch = RecallSource(kTask, RecallTargets::kEveryToken).next(4);
  EXPECT_EQ(compute_gradients(model, batch, {.micro_batch_size = 4}).first_bad, std::nullopt);
  model->named_parameters()
      .find("model.layers.0.mlp.up_proj.weight")
      ->register_hook([](const torch::Tensor& gradient) { return gradient * NAN; });
  EXPECT_EQ(compute_gradients(model, batch, {.micro_batch_size = 4}).first_bad,
            "the gradient of model.layers.0.mlp.up_proj.weight");
}

TEST(ComputeGradients, RefusesABatchWithoutTargets) {
  auto model = tiny_model();
  Batch batch = RecallSource(kTask, RecallTargets::kEveryToken).next(2);
  batch.targets_BT.fill_(kIgnoreIndex);
  EXPECT_THROW(compute_gradients(model, batch, {.micro_batch_size = 2}), Error);
}

TEST(Evaluate, AUniformModelHasTheLossOfGuessing) {
  auto model = tiny_model();
  {
    torch::NoGradGuard no_grad;
    model->named_parameters().find("model.embed_tokens.weight")->zero_();
  }
  RecallSource source(kTask, RecallTargets::kRecalledValues);
  const auto result = evaluate(model, source,
                               {.num_sequences = 5,
                                .batch_size = 2,
                                .with_accuracy = true,
                                .bytes_of_token = torch::full({16}, 2, torch::kInt64)});
  EXPECT_NEAR(result.loss, std::log(16.0), 1e-6);
  EXPECT_NEAR(*result.bits_per_byte, 2, 1e-6);  // 4 bits per token of two bytes
  EXPECT_EQ(*result.accuracy, 0);               // the arg max of equals is token 0, a key
  source.reset();
  EXPECT_EQ(result.num_targets, source.next(5).targets_BT.ne(kIgnoreIndex).sum().item<int64_t>());
  EXPECT_NEAR(to_json(result).at("validation_perplexity").get<double>(), 16, 1e-4);
}

TEST(Evaluate, ScoresTheSameSequencesEachTime) {
  auto model = tiny_model();
  RecallSource source(kTask, RecallTargets::kRecalledValues);
  const EvaluationOptions options{.num_sequences = 5, .batch_size = 2};
  const auto first = evaluate(model, source, options);
  source.next(3);
  const auto second = evaluate(model, source, options);
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_EQ(first.num_targets, second.num_targets);
}

TEST(RecallSource, TargetsAreTheNextTokensOfTheSameSequences) {
  RecallSource every(kTask, RecallTargets::kEveryToken);
  RecallSource recalled(kTask, RecallTargets::kRecalledValues);
  const Batch all = every.next(3), some = recalled.next(3);
  EXPECT_EQ(all.tokens_BT.sizes(), (std::vector<int64_t>{3, 15}));
  EXPECT_TRUE(torch::equal(all.tokens_BT, some.tokens_BT));
  EXPECT_TRUE(torch::equal(all.tokens_BT.slice(1, 1), all.targets_BT.slice(1, 0, 14)));
  const auto counted = some.targets_BT.ne(kIgnoreIndex);
  EXPECT_TRUE(
      torch::equal(some.targets_BT.masked_select(counted), all.targets_BT.masked_select(counted)));
  EXPECT_TRUE(some.targets_BT.masked_select(counted).ge(8).all().item<bool>());
  EXPECT_TRUE(counted.select(1, 14).all().item<bool>()) << "the probe counts";
}

TEST(RecallSource, ContinuesFromItsStateAndRefusesAnother) {
  RecallSource source(kTask, RecallTargets::kEveryToken);
  source.next(3);
  const auto state = source.state();
  const auto expected = source.next(2).tokens_BT;
  RecallSource other(kTask, RecallTargets::kEveryToken);
  other.load_state(state);
  EXPECT_TRUE(torch::equal(other.next(2).tokens_BT, expected));
  other.reset();
  EXPECT_FALSE(torch::equal(other.next(2).tokens_BT, expected));
  RecallSource reseeded({.vocab_size = 16, .length = 16, .seed = 6}, RecallTargets::kEveryToken);
  EXPECT_THROW(reseeded.load_state(state), Error);
}

}  // namespace
}  // namespace parallax::train
