// Evaluation during training.
// SPDX-License-Identifier: Apache-2.0
#include "train/evaluation.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "nn/loss.h"
#include "parallax/error.h"
#include "train/step.h"

namespace parallax::train {
namespace {

/// How many of the counted targets [N] are the arg max of their logits.
int64_t count_correct(nn::Decoder& model, const torch::Tensor& hidden_NC,
                      const torch::Tensor& targets_N) {
  const torch::Tensor counted = targets_N.ne(kIgnoreIndex).nonzero().flatten();
  const torch::Tensor guesses = model->logits(hidden_NC.index_select(0, counted)).argmax(-1);
  return guesses.eq(targets_N.index_select(0, counted)).sum().item<int64_t>();
}

}  // namespace

EvaluationResult evaluate(nn::Decoder& model, DataSource& source,
                          const EvaluationOptions& options) {
  torch::NoGradGuard no_grad;
  const torch::Device device = model->head_weight().device();
  const AutocastScope autocast(device, options.compute);
  model->eval();
  source.reset();
  double loss_sum = 0;
  int64_t num_targets = 0, num_correct = 0, num_bytes = 0;
  for (int64_t done = 0; done < options.num_sequences; done += options.batch_size) {
    const Batch batch = source.next(std::min(options.batch_size, options.num_sequences - done));
    const torch::Tensor targets_N = batch.targets_BT.flatten().to(device);
    const torch::Tensor hidden_NC = model->hidden(batch.tokens_BT.to(device)).flatten(0, 1);
    const nn::CrossEntropySum loss = nn::chunked_cross_entropy(
        hidden_NC, model->head_weight(), targets_N, {.ignore_index = kIgnoreIndex});
    loss_sum += loss.sum.item<double>();
    num_targets += loss.count.item<int64_t>();
    if (options.with_accuracy) num_correct += count_correct(model, hidden_NC, targets_N);
    if (options.bytes_of_token.defined()) {
      const torch::Tensor counted =
          batch.targets_BT.masked_select(batch.targets_BT.ne(kIgnoreIndex));
      num_bytes += options.bytes_of_token.index_select(0, counted).sum().item<int64_t>();
    }
  }
  PLX_CHECK(num_targets > 0, "the validation data has no targets");
  EvaluationResult result{.loss = loss_sum / static_cast<double>(num_targets),
                          .num_targets = num_targets,
                          .bits_per_byte = {},
                          .accuracy = {}};
  if (num_bytes > 0)
    result.bits_per_byte = loss_sum / (std::numbers::ln2 * static_cast<double>(num_bytes));
  if (options.with_accuracy)
    result.accuracy = static_cast<double>(num_correct) / static_cast<double>(num_targets);
  return result;
}

nlohmann::json to_json(const EvaluationResult& result) {
  nlohmann::json json = {{"validation_loss", result.loss},
                         {"validation_perplexity", std::exp(result.loss)}};
  if (result.bits_per_byte) json["bits_per_byte"] = *result.bits_per_byte;
  if (result.accuracy) json["accuracy"] = *result.accuracy;
  return json;
}

}  // namespace parallax::train
