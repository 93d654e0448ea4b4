// Batches of fixed length from token shards: shuffled for training, in order for validation.
//
// The split is one stream of tokens, documents joined by their end-of-document tokens. A window of
// context_length + 1 tokens gives one row: its first context_length tokens and, one further, their
// targets. Neighbouring windows share one token, so that every token is a target once.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>

#include "io/token_shards.h"
#include "train/data_source.h"
#include "train/permutation.h"

namespace parallax::train {

struct LoaderOptions {
  /// kShuffled: endless. Epoch e cuts the stream at an offset in [0, context_length) that depends
  /// on
  ///   seed and e, drops the tokens before it and the incomplete window at the end (other ones in
  ///   each epoch), and visits the windows in a pseudo-random order that depends on seed and e.
  /// kSequential: one pass from the first token to the last. The last window is filled up with
  ///   kIgnoreIndex targets, the last batch may have fewer rows; next() beyond it is an Error until
  ///   reset().
  enum class Order { kShuffled, kSequential };

  int64_t context_length = 0;
  Order order = Order::kShuffled;
  uint64_t seed = 0;  // kShuffled only
};

class TokenLoader final : public DataSource {
 public:
  /// An Error if the split is shorter than one window (kSequential: than two tokens).
  TokenLoader(std::shared_ptr<const io::TokenDataset> dataset, LoaderOptions options);

  /// An id outside the vocabulary that the dataset was opened with is an Error.
  Batch next(int64_t batch_size) override;

  /// {"order", "data": fingerprint, "seed", "context_length", "epoch", "position": windows taken of
  /// the epoch}.
  nlohmann::json state() const override;
  /// An Error names what differs if the state is of other data, seed, context length or order.
  void load_state(const nlohmann::json& state) override;
  void reset() override { start_epoch(0); }

  /// Windows of the current epoch, and how many of them were taken.
  int64_t num_windows() const { return num_windows_; }
  int64_t position() const { return position_; }
  int64_t epoch() const { return epoch_; }

 private:
  bool is_shuffled() const { return options_.order == LoaderOptions::Order::kShuffled; }
  void start_epoch(int64_t epoch);
  void read_window(int64_t start, std::span<int64_t> tokens, std::span<int64_t> targets) const;

  std::shared_ptr<const io::TokenDataset> dataset_;
  LoaderOptions options_;
  int64_t epoch_ = 0, position_ = 0;
  // Of the current epoch:
  int64_t offset_ = 0, num_windows_ = 0;
  Permutation permutation_{1, 0};
};

}  // namespace parallax::train
