// In-context recall (src/mad) as a data source: fresh sequences at every step.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mad/in_context_recall.h"
#include "train/data_source.h"

namespace parallax::train {

/// What counts in the loss: every next token (training), or only the values of keys that occurred
/// before in the sequence (what accuracy is measured on).
enum class RecallTargets { kEveryToken, kRecalledValues };

/// Batches [B, length - 1]: a sequence of L tokens gives L - 1 inputs with a target each.
class RecallSource : public DataSource {
 public:
  RecallSource(const mad::InContextRecallOptions& options, RecallTargets targets);

  Batch next(int64_t batch_size) override;
  nlohmann::json state() const override;
  void load_state(const nlohmann::json& state) override;
  void reset() override { next_sequence_ = 0; }

 private:
  mad::InContextRecallOptions options_;
  RecallTargets targets_;
  uint64_t next_sequence_ = 0;
};

}  // namespace parallax::train
