// Checkpoints of a run: Hugging Face folders with the training state beside the weights.
//
//   OUTPUT/step_00000300/config.json, model.safetensors, tokenizer.json
//   OUTPUT/step_00000300/training/{state,recipe}.json, {optimizer,random}.safetensors
//   OUTPUT/latest -> step_00000300
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "nn/decoder.h"
#include "optim/optimizer.h"

namespace parallax::train {

/// Where a run is. The schedule is a function of the step.
struct TrainingState {
  int64_t step = 0;        ///< optimizer steps done
  int64_t num_tokens = 0;  ///< tokens trained on
  double seconds = 0;      ///< spent in training steps
  nlohmann::json data;     ///< DataSource::state()
  nlohmann::json recipe;   ///< to_json(Recipe)
};

/// What a checkpoint holds beside the weights.
struct CheckpointContents {
  TrainingState state;
  std::map<std::string, torch::Tensor> optimizer;
};

class CheckpointStore {
 public:
  CheckpointStore(std::filesystem::path folder, int64_t keep_last);

  /// The checkpoint with the most steps; none if there is none.
  std::optional<std::filesystem::path> latest() const;
  /// Writes step_<step>, points `latest` at it and deletes the oldest beyond keep_last. Whenever
  /// the process dies, every step_ folder is whole. Throws if it cannot be written or a tensor of
  /// model or optimizer is NaN or infinite; older checkpoints are as before then. An empty
  /// tokenizer means that the tokens are no text.
  std::filesystem::path save(const nn::Decoder& model, const optim::Optimizer& optimizer,
                             const TrainingState& state, const std::string& tokenizer) const;
  /// Deletes all checkpoints.
  void clear() const;

 private:
  std::vector<std::filesystem::path> oldest_first() const;
  void remove(const std::filesystem::path& checkpoint) const;

  std::filesystem::path folder_;
  int64_t keep_last_;
};

/// Reads training/ of a checkpoint and sets Torch's global random state to what it was. The weights
/// are read by nn::load_pretrained. Throws if something is missing or damaged.
CheckpointContents load_checkpoint(const std::filesystem::path& checkpoint);

}  // namespace parallax::train
