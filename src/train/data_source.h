// The contract of a data source: what a training step draws its batches from.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "nn/loss.h"

namespace parallax::train {

using nn::kIgnoreIndex;

/// int64 [B, T] each; target t is what the model should predict after token t.
struct Batch {
  torch::Tensor tokens_BT, targets_BT;
};

/// A deterministic stream of batches: the same seed and state give the same batches on any machine.
class DataSource {
 public:
  virtual ~DataSource() = default;
  virtual Batch next(int64_t batch_size) = 0;
  /// The position in the stream, and its restoration: the next batch after load_state(s) is the one
  /// that followed when state() gave s. Throws if the state belongs to other data.
  virtual nlohmann::json state() const = 0;
  virtual void load_state(const nlohmann::json& state) = 0;
  /// Back to the first batch.
  virtual void reset() = 0;
};

/// A whole number from 0 on of a DataSource's state. Throws if the state has none under this key.
int64_t count_in(const nlohmann::json& state, const char* key);

}  // namespace parallax::train
