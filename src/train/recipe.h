// The recipe of a training run: everything that decides its result, read from a TOML file.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "nn/config.h"
#include "optim/param_groups.h"
#include "optim/schedule.h"

namespace parallax::train {

/// [model]: a config.json, a checkpoint to start from, or the fields of config.json themselves.
struct ModelSection {
  std::string config;
  std::string init_from;
  nn::ModelConfig fields;
};

/// [data]
struct DataSection {
  std::string kind = "shards";
  std::string path;
  int64_t context_length = 1024;
  int64_t seed = 1;
};

/// [optimizer]; groups are [[optimizer.groups]].
struct OptimizerSection {
  std::string name = "muon";
  double lr = 0.02;
  double weight_decay = 0.1;
  double embedding_lr_multiplier = 1, norm_lr_multiplier = 1;
  double momentum = 0.95;
  bool nesterov = true;
  std::string scaling = "original";
  std::string newton_schulz = "jordan";
  int64_t newton_schulz_steps = 0;
  std::string newton_schulz_dtype = "float32";
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  std::vector<optim::GroupRule> groups;
};

/// [schedule]
struct ScheduleSection {
  std::string kind = "wsd";
  int64_t warmup_steps = 0;
  double decay_ratio = 0.2;
  std::string decay_shape = "linear";
  double min_lr_factor = 0;
  double weight_decay_gamma = 0;
};

/// [train]
struct TrainSection {
  int64_t steps = 1000;
  int64_t batch_size = 16;
  int64_t micro_batch_size = 0;
  std::string compute = "float32";
  double clip_norm = 1;
  bool activation_checkpointing = false;
  double embedding_init_std = 0;
  int64_t seed = 1;
  std::string device = "auto";
  bool deterministic = false;
  int64_t timeout_seconds = 600;
};

/// [evaluation]
struct EvaluationSection {
  int64_t every_steps = 0;
  int64_t num_sequences = 128;
};

/// [checkpoint]
struct CheckpointSection {
  int64_t every_steps = 0;
  int64_t keep_last = 2;
};

/// [logging]
struct LoggingSection {
  int64_t every_steps = 1;
  std::string run;
  double peak_tflops = 0;
};

struct Recipe {
  ModelSection model;
  DataSection data;
  OptimizerSection optimizer;
  ScheduleSection schedule;
  TrainSection train;
  EvaluationSection evaluation;
  CheckpointSection checkpoint;
  LoggingSection logging;

  /// "section.key" of every setting that the recipe states, as opposed to defaults.
  std::set<std::string> given;

  int64_t micro_batch_size() const {
    return train.micro_batch_size == 0 ? train.batch_size : train.micro_batch_size;
  }
};

/// What is allowed for a setting, and what it means.
struct FieldInfo {
  const char* help = "";
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  std::vector<std::string> choices = {};
  /// A resumed run may have another value.
  bool may_change = false;
};

/// Reads a recipe; `base = "other.toml"` (relative to the recipe) is read first and overridden key
/// by key, then come `overrides`, each "section.key=value". A syntax error, an unknown key, a wrong
/// type or range is an Error "file:line: ..." that names the nearest known key where it helps.
/// `resumed` is the checkpoint that the run continues, if it does: it has the fields that came from
/// model.init_from, whose folder is not needed any more.
Recipe load_recipe(const std::filesystem::path& path,
                   const std::vector<std::string>& overrides = {},
                   const std::optional<std::filesystem::path>& resumed = {});

/// Settings that are stated but have no effect, one sentence each.
std::vector<std::string> warnings(const Recipe& recipe);

/// All settings, defaults included, as {"section": {"key": value}}.
nlohmann::json to_json(const Recipe& recipe);
/// One line per setting that differs between two recipes (to_json) and may not when a run is
/// resumed, such as "optimizer.lr: 0.02 in the checkpoint, 0.01 now".
std::vector<std::string> differences(const nlohmann::json& saved, const nlohmann::json& now);
/// The settings that may differ, as "train.steps".
std::vector<std::string> changeable_settings();
/// A reference of all settings with meaning, default and range, for --list-settings.
std::string describe_settings();

optim::OptimizerOptions optimizer_options(const OptimizerSection& section);
optim::ScheduleOptions schedule_options(const Recipe& recipe);

}  // namespace parallax::train
