// Loss and accuracy on validation data while training.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "nn/decoder.h"
#include "optim/ranks.h"
#include "train/data_source.h"

namespace parallax::train {

struct EvaluationOptions {
  int64_t num_sequences = 128;
  int64_t batch_size = 16;
  torch::ScalarType compute = torch::kFloat32;
  /// Share of targets that are the most probable token.
  bool with_accuracy = false;
  /// int64 [V], the bytes each token stands for; undefined when tokens are no text.
  torch::Tensor bytes_of_token{};
  /// Each scores its share of the batches.
  std::shared_ptr<optim::Ranks> ranks = std::make_shared<optim::Ranks>();
};

struct EvaluationResult {
  double loss = 0;  ///< nats per target
  int64_t num_targets = 0;
  std::optional<double> bits_per_byte, accuracy;
};

/// Scores the first num_sequences of `source`, which is reset before. The same result on every
/// rank.
EvaluationResult evaluate(nn::Decoder& model, DataSource& source, const EvaluationOptions& options);

/// {"validation_loss", "validation_perplexity"} and, where known, {"bits_per_byte", "accuracy"}.
nlohmann::json to_json(const EvaluationResult& result);

}  // namespace parallax::train
