// What the trainer's tests share: a temporary folder and a recipe of a few milliseconds per step.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "io/atomic_file.h"
#include "io/token_shards.h"
#include "parallax/error.h"
#include "text/tokenizer.h"
#include "train/trainer.h"

namespace parallax::train {

namespace fs = std::filesystem;

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

inline std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "(accepted)";
}

inline optim::NamedTensors named_parameters(const nn::Decoder& model) {
  optim::NamedTensors parameters;
  for (const auto& entry : model->named_parameters())
    parameters.emplace_back(entry.key(), entry.value());
  return parameters;
}

/// Puts `value` into one weight while the gradient of step `step` is computed: a stand-in for an
/// update that went wrong.
inline void poison(Trainer& trainer, const std::string& name, int step, float value) {
  const torch::Tensor weight = *trainer.model()->named_parameters().find(name);
  const auto num_calls = std::make_shared<int>(0);
  weight.register_hook([=, data = weight.detach()](const torch::Tensor& gradient) {
    if (++*num_calls == step) data.flatten()[0].fill_(value);
    return gradient;
  });
}

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

  /// A run that is stopped after a step of the recipe's.
  RunSummary train_until(int64_t step, const std::string& output,
                         const std::vector<std::string>& settings = {}) const {
    RunOptions part = options(output);
    part.stop_at = step;
    return Trainer(recipe(settings), part).run();
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

  /// A token folder of the byte tokenizer; the vocabulary is 257.
  fs::path write_tokens(const std::string& name, int64_t num_validation_tokens = 0) const {
    const auto tokenizer = text::make_byte_tokenizer();
    io::TokenDatasetWriter writer(folder_ / name,
                                  {.vocab_size = 257,
                                   .eos_id = 256,
                                   .tokenizer_json = tokenizer->serialized(),
                                   .tokenizer_fingerprint = tokenizer->fingerprint()});
    writer.append(io::Split::kTrain, std::vector<int32_t>(16 * 100, 65), 16 * 100);
    if (num_validation_tokens > 0)
      writer.append(io::Split::kValidation,
                    std::vector<int32_t>(static_cast<size_t>(num_validation_tokens), 66),
                    num_validation_tokens);
    writer.commit();
    return folder_ / name;
  }

  std::vector<std::string> settings_for(const fs::path& tokens) const {
    return {"data.kind=shards", "data.path=" + tokens.string(), "model.vocab_size=257"};
  }

  /// Overwrites a token of a shard with one that no vocabulary has.
  static void damage_token(const fs::path& shard, int64_t token_idx) {
    std::fstream file(shard, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(24 + 2 * token_idx);  // header, 2 bytes per token
    file.write("\xFF\xFF", 2);
  }

  std::string file(const std::string& path) const { return io::read_file(folder_ / path); }

  fs::path folder_;
};

}  // namespace parallax::train
