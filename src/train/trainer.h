// The training loop: steps, evaluation, metrics, checkpoints, interruption.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/descriptor.h"
#include "nn/decoder.h"
#include "optim/param_groups.h"
#include "optim/ranks.h"
#include "optim/schedule.h"
#include "train/checkpoint.h"
#include "train/evaluation.h"
#include "train/metrics.h"
#include "train/profile.h"
#include "train/recipe.h"
#include "train/step.h"
#include "train/task_data.h"

namespace parallax::train {

struct RunOptions {
  /// Where checkpoints and metrics.jsonl go.
  std::filesystem::path output;
  /// Continue from the latest checkpoint in `output`; from the first step if there is none.
  bool resume = false;
  /// Delete an older run in `output` once this one is known to be able to start; without, one that
  /// is there is an error.
  bool overwrite = false;
  /// Save and stop after this many steps of the recipe's; 0 for all.
  int64_t stop_at = 0;
  bool show_progress = true;
  /// Where to write a profile of some steps (StepProfile); empty for none.
  std::filesystem::path profile{};
  /// The processes that train together; each makes a Trainer with otherwise equal arguments. Only
  /// the first writes to `output`, which all must see when a run is resumed.
  std::shared_ptr<optim::Ranks> ranks = std::make_shared<optim::Ranks>();
  /// The GPU of this process, of those that it sees.
  int local_rank = 0;
};

struct RunSummary {
  TrainingState state;
  int signal = 0;                   ///< what interrupted the run, 0 if nothing
  std::optional<double> last_loss;  ///< of the last step, nats; none if this call made no step
  std::optional<EvaluationResult> evaluation;
  std::filesystem::path checkpoint;  ///< empty if this call had nothing to do and saved nothing
  /// The most memory held: of the device's allocator on CUDA, of the process on a CPU.
  int64_t peak_memory_bytes = 0;
  /// Of all steps, those before a resumption too: "tokens_per_second" and, where the device's peak
  /// rate is known, "model_flops_utilization", the share of it that the model's products are.
  nlohmann::json speed;
  std::vector<KernelTime> kernels;  ///< of the profile
};

class Trainer {
 public:
  /// Builds or loads everything. Throws if the output folder holds another run or is in use by one,
  /// if its disk has no room for a checkpoint, if too few steps are left for a profile, or if the
  /// checkpoint to resume is damaged or was made with other settings (the message lists them). What
  /// only the first rank looks at is optim::OtherRankTells on the others.
  Trainer(Recipe recipe, RunOptions options);

  /// Trains to the end, to stop_at, or to a signal, and saves. A loss, gradient or weight that is
  /// NaN, infinite or beyond kLargestNorm is an Error naming the step and the first such tensor; so
  /// is data that cannot be read, a failed evaluation, and metrics that cannot be written. The
  /// state of the last finished step is saved before it is thrown, and no older one deleted; only
  /// where that step itself made a weight bad is it not saved, so that `latest` is always a state
  /// to go on from. Of several ranks all end then, a lost one (LostRank) included: the first saves
  /// as said, the others may throw OtherRankTells.
  RunSummary run();

  nn::Decoder& model() { return model_; }
  const Recipe& recipe() const { return recipe_; }
  const TrainingState& state() const { return state_; }
  /// What resuming changes about the run, and what has no effect on it, a sentence each.
  const std::vector<std::string>& warnings() const { return warnings_; }
  /// The model, the data and the optimizer's groups, a line each.
  std::vector<std::string> description() const;

 private:
  bool prepare_output();
  void check_shares() const;
  int agreed_signal();
  bool replaces_run() const { return options_.overwrite && !options_.resume; }
  void build_model(const std::optional<std::filesystem::path>& checkpoint);
  void resume_from(const std::filesystem::path& checkpoint);
  void warn_of_no_effect();
  int64_t last_step() const;
  void start_profile();
  void step();
  void take_step();
  /// Sequences of a rank's forward pass.
  int64_t micro_batch_size() const;
  void guard_weights();
  void warn_of_reshaped_schedule(const nlohmann::json& saved_recipe);
  [[noreturn]] void stop_on_bad(int64_t step, const std::string& what, const std::string& outcome);
  std::string rescue();
  std::string newest_checkpoint() const;
  template <typename Work>
  auto or_rescue(const std::string& where, Work&& work);
  void record(const nlohmann::json& line);
  void log_step();
  void evaluate_now();
  void write_checkpoint();
  void save();
  std::optional<double> least_seconds_per_token() const;
  nlohmann::json speed(int64_t num_tokens, double seconds) const;
  nlohmann::json start_line() const;

  Recipe recipe_;
  RunOptions options_;
  torch::Device device_;
  torch::ScalarType compute_;
  std::string device_name_;
  TaskData data_;
  nn::Decoder model_{nullptr};
  std::vector<optim::ParameterPlan> plan_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  std::optional<StepProfile> profile_;
  std::optional<StepGradients> gradients_;  // none once memory has run out
  std::optional<double> seconds_per_token_at_peak_;
  optim::Schedule schedule_;
  CheckpointStore store_;
  io::Descriptor lock_;                 // of the output folder
  std::optional<MetricsFile> metrics_;  // of the first rank
  Progress progress_;
  TrainingState state_;  // of the last finished step
  std::vector<std::string> warnings_;
  RunSummary summary_;
  std::optional<int64_t> saved_step_;  // of the newest checkpoint that this run knows
  bool has_unusual_weights_ = false;
  bool has_ended_before_ = false;  // no step is left, and the metrics tell of the end
  StepResult last_step_;
  // Since the last line of metrics.
  struct Interval {
    double loss_sum = 0, seconds = 0;
    int64_t num_steps = 0, num_tokens = 0;
  } interval_;
};

}  // namespace parallax::train
