// Evaluation during training.
// SPDX-License-Identifier: Apache-2.0
#include "train/evaluation.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "evaluate/score.h"
#include "parallax/error.h"
#include "train/step.h"

namespace parallax::train {

EvaluationResult evaluate(nn::Decoder& model, DataSource& source,
                          const EvaluationOptions& options) {
  const torch::Device device = model->head_weight().device();
  const AutocastScope autocast(device, options.compute);
  source.reset();
  parallax::evaluate::Score own;
  int64_t num_own_bytes = 0, batch_idx = 0;
  for (int64_t done = 0; done < options.num_sequences; done += options.batch_size) {
    const Batch batch = source.next(std::min(options.batch_size, options.num_sequences - done));
    if (batch_idx++ % options.ranks->size() != options.ranks->rank()) continue;
    own += parallax::evaluate::score_batch(model, {batch.tokens_BT, batch.targets_BT});
    if (options.bytes_of_token.defined()) {
      const torch::Tensor counted =
          batch.targets_BT.masked_select(batch.targets_BT.ne(kIgnoreIndex));
      num_own_bytes += options.bytes_of_token.index_select(0, counted).sum().item<int64_t>();
    }
  }
  const auto sums = options.ranks->sum({own.sum_nats, static_cast<double>(own.num_targets),
                                        static_cast<double>(own.num_correct),
                                        static_cast<double>(num_own_bytes)});
  const parallax::evaluate::Score score{.sum_nats = sums[0],
                                        .num_targets = std::llround(sums[1]),
                                        .num_correct = std::llround(sums[2])};
  const int64_t num_bytes = std::llround(sums[3]);
  PLX_CHECK(score.num_targets > 0, "the validation data has no targets");
  EvaluationResult result{
      .loss = score.loss(), .num_targets = score.num_targets, .bits_per_byte = {}, .accuracy = {}};
  if (num_bytes > 0)
    result.bits_per_byte = score.sum_nats / (std::numbers::ln2 * static_cast<double>(num_bytes));
  if (options.with_accuracy) result.accuracy = score.accuracy();
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
