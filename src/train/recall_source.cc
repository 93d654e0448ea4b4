// In-context recall as a data source.
// SPDX-License-Identifier: Apache-2.0
#include "train/recall_source.h"

#include <nlohmann/json.hpp>

#include "parallax/error.h"

namespace parallax::train {
namespace {

nlohmann::json identity_of(const mad::InContextRecallOptions& options) {
  return {{"kind", "in_context_recall"},
          {"vocab_size", options.vocab_size},
          {"length", options.length},
          {"seed", options.seed}};
}

}  // namespace

RecallSource::RecallSource(const mad::InContextRecallOptions& options, RecallTargets targets)
    : options_(options), targets_(targets) {
  mad::in_context_recall(options_, 0);  // throws if the options are out of range
}

Batch RecallSource::next(int64_t batch_size) {
  const int64_t num_inputs = options_.length - 1;
  Batch batch{torch::empty({batch_size, num_inputs}, torch::kInt64),
              torch::full({batch_size, num_inputs}, kIgnoreIndex, torch::kInt64)};
  auto tokens = batch.tokens_BT.accessor<int64_t, 2>();
  auto targets = batch.targets_BT.accessor<int64_t, 2>();
  for (int64_t b = 0; b < batch_size; ++b) {
    const mad::RecallSequence sequence = mad::in_context_recall(options_, next_sequence_++);
    for (int64_t t = 0; t < num_inputs; ++t) {
      const auto idx = static_cast<size_t>(t);
      tokens[b][t] = sequence.tokens[idx];
      if (targets_ == RecallTargets::kEveryToken || sequence.is_recall[idx])
        targets[b][t] = sequence.tokens[idx + 1];
    }
  }
  return batch;
}

nlohmann::json RecallSource::state() const {
  return {{"source", identity_of(options_)}, {"next_sequence", next_sequence_}};
}

void RecallSource::load_state(const nlohmann::json& state) {
  PLX_CHECK(state.is_object(), "data state: a JSON object is needed, it is ", state.dump());
  const nlohmann::json identity = identity_of(options_);
  PLX_CHECK(state.contains("source") && state.at("source") == identity,
            "the position belongs to other data: ", state.value("source", nlohmann::json()).dump(),
            ", this run reads ", identity.dump());
  next_sequence_ = static_cast<uint64_t>(count_in(state, "next_sequence"));
}

}  // namespace parallax::train
