// How well a model predicts given targets: loss in nats, and how often the most probable token is
// the right one.
//
// Legend: B sequences, T tokens each, C hidden size, V vocabulary.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <optional>

#include "nn/decoder.h"

namespace parallax::evaluate {

/// int64 [B, T] each; target t is what the model should predict after token t, or
/// nn::kIgnoreIndex.
struct ScoredBatch {
  torch::Tensor tokens_BT, targets_BT;
};

/// Sums over targets that count; add batches with +=.
struct Score {
  double sum_nats = 0.0;
  int64_t num_targets = 0;
  /// Targets that are the most probable token (the lowest id among equals).
  int64_t num_correct = 0;

  /// Mean nats per target, its exponential, and the share of correct targets; 0, 1 and 0 of none.
  double loss() const;
  double perplexity() const;
  double accuracy() const;
  Score& operator+=(const Score& other);
};

/// The score of one batch. The head runs over at most `chunk_targets` positions at a time, and only
/// over those that count, so no [B, T, V] exists; losses are computed in float32 and summed in
/// double. The batch may be on another device than the model. Puts the model into eval mode for the
/// call and records no gradients. Throws parallax::Error for shapes that differ, for ids that are
/// out of range, and for a loss that is not finite.
Score score_batch(nn::Decoder& model, const ScoredBatch& batch, int64_t chunk_targets = 1024);

/// The sum over all batches that next_batch gives, until it gives none.
Score evaluate(nn::Decoder& model, const std::function<std::optional<ScoredBatch>()>& next_batch);

}  // namespace parallax::evaluate
