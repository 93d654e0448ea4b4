// Checkpoints of a run: Hugging Face folders with the training state beside the weights.
//
//   OUTPUT/step_00000300/config.json, model.safetensors, tokenizer.json
//   OUTPUT/step_00000300/training/{state,recipe}.json, {optimizer,random}.safetensors
//   OUTPUT/latest -> step_00000300
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "nn/decoder.h"
#include "optim/optimizer.h"
#include "text/tokenizer.h"

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

/// The checkpoints of one output folder: its folders named as save() names them, no others.
class CheckpointStore {
 public:
  explicit CheckpointStore(std::filesystem::path folder) : folder_(std::move(folder)) {}

  std::filesystem::path path_of(int64_t step) const;
  /// The checkpoint with the most steps; none if there is none.
  std::optional<std::filesystem::path> latest() const;
  /// Writes step_<step> and points `latest` at it. Whenever the process dies, every step_ folder is
  /// whole. Throws if it cannot be written or a tensor of model or optimizer is NaN or infinite;
  /// older checkpoints are as before then. Without a tokenizer the tokens are no text.
  std::filesystem::path save(const nn::Decoder& model, const optim::Optimizer& optimizer,
                             const TrainingState& state, const text::Tokenizer* tokenizer) const;
  /// Whether `path` is one of the checkpoints or lies in one; links are followed.
  bool holds(const std::filesystem::path& path) const;
  /// Bytes of all checkpoints: what clear() gives back to the disk.
  uint64_t num_bytes() const;
  /// Throws unless the disk has room for one more checkpoint, by the sizes of its tensors, once
  /// `freed_bytes` of it are deleted.
  void check_space(const nn::Decoder& model, const optim::Optimizer& optimizer,
                   uint64_t freed_bytes = 0) const;
  /// Deletes checkpoints of fewer steps than `step`, the oldest first, until keep_last are left.
  void prune(int64_t step, int64_t keep_last) const;
  /// Deletes all checkpoints.
  void clear() const;
  /// Deletes what killed runs left half written or half deleted. The folder must be locked.
  void remove_leftovers() const;

 private:
  std::map<int64_t, std::filesystem::path> by_step() const;
  void remove(const std::filesystem::path& checkpoint) const;

  std::filesystem::path folder_;
};

/// Reads training/ of a checkpoint and sets Torch's global random state to what it was, that of the
/// current CUDA device too if it was saved and there is one. The weights
/// are read by nn::load_pretrained. Throws if something is missing or damaged, or if any file of
/// the checkpoint has other bytes than were saved.
CheckpointContents load_checkpoint(const std::filesystem::path& checkpoint);

}  // namespace parallax::train
