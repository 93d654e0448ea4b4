// What the trainer's tests share: a temporary folder and a recipe of a few milliseconds per step.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "io/atomic_file.h"
#include "train/trainer.h"

namespace parallax::train {

inline constexpr const char* kTinyRecipe = R"(
[model]
vocab_size = 16
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
max_position_embeddings = 64
rope_theta = 10000.0
mixers = ["parallax"]
[data]
kind = "in_context_recall"
context_length = 16
[optimizer]
lr = 0.02
embedding_lr_multiplier = 0.3
[train]
steps = 20
batch_size = 4
device = "cpu"
[evaluation]
num_sequences = 8
)";

class TrainerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("plx_trainer_" + std::to_string(::getpid()) + "_" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    io::write_file(folder_ / "recipe.toml", kTinyRecipe);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Recipe recipe(const std::vector<std::string>& settings = {}) const {
    return load_recipe(folder_ / "recipe.toml", settings);
  }

  RunOptions options(const std::string& output) const {
    return {.output = folder_ / output, .show_progress = false};
  }

  RunSummary train(const std::string& output, const std::vector<std::string>& settings = {}) const {
    return Trainer(recipe(settings), options(output)).run();
  }

  RunSummary resume(const std::string& output,
                    const std::vector<std::string>& settings = {}) const {
    RunOptions resumed = options(output);
    resumed.resume = true;
    return Trainer(recipe(settings), resumed).run();
  }

  /// The lines of metrics.jsonl of one event.
  std::vector<nlohmann::json> metrics(const std::string& output, const std::string& event) const {
    std::istringstream text(io::read_file(folder_ / output / "metrics.jsonl"));
    std::vector<nlohmann::json> lines;
    for (std::string line; std::getline(text, line);) {
      auto json = nlohmann::json::parse(line);
      if (json.at("event") == event) lines.push_back(std::move(json));
    }
    return lines;
  }

  std::vector<double> losses(const std::string& output) const {
    std::vector<double> values;
    for (const auto& line : metrics(output, "train")) values.push_back(line.at("loss"));
    return values;
  }

  std::string file(const std::string& path) const { return io::read_file(folder_ / path); }

  std::filesystem::path folder_;
};

}  // namespace parallax::train
