// config.json: what is read, what is refused, what is written.
// SPDX-License-Identifier: Apache-2.0
#include "nn/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/temp_folder.h"

namespace parallax::nn {
namespace {

using nlohmann::json;
using test::expect_error;

json base(const std::string& model_type) {
  return {{"model_type", model_type}, {"vocab_size", 100},          {"hidden_size", 32},
          {"intermediate_size", 64},  {"num_hidden_layers", 2},     {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"tie_word_embeddings", true}};
}

ModelConfig load(const json& file) {
  const test::TempFolder folder;
  folder.write("config.json", file.dump());
  return load_config(folder.path());
}

json with(json file, const json& changes) {
  file.update(changes);
  return file;
}

TEST(Config, FamiliesSetWhatTheirFilesLeaveUnsaid) {
  const ModelConfig qwen3 = load(base("qwen3")), qwen2 = load(base("qwen2")),
                    llama = load(base("llama"));
  EXPECT_TRUE(qwen3.qk_norm && !qwen3.attention_bias);
  EXPECT_TRUE(!qwen2.qk_norm && qwen2.attention_bias);
  EXPECT_TRUE(!llama.qk_norm && !llama.attention_bias);
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_EQ(qwen2.head_dim, 8);
  EXPECT_EQ(llama.head_dim, 8);
  for (const ModelConfig& config : {qwen3, qwen2, llama}) {
    EXPECT_EQ(config.mixers, std::vector<std::string>{"softmax"});
    EXPECT_EQ(config.rope_theta, 1e4);
  }
}

TEST(Config, AbsentAndNullFieldsTakeTheirDefaults) {
  json file = base("llama");
  file.erase("num_key_value_heads");
  file.erase("tie_word_embeddings");
  file["head_dim"] = nullptr;
  const ModelConfig config = load(file);
  EXPECT_EQ(config.num_key_value_heads, 4);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_TRUE(config.eos_token_ids.empty());
  file.erase("hidden_size");
  expect_error([&] { load(file); }, {"config.json", "hidden_size is missing"});
}

TEST(Config, RopeBaseIsReadFromEitherPlace) {
  const json nested = {{"rope_parameters", {{"rope_theta", 7e5}, {"rope_type", "default"}}}};
  EXPECT_EQ(load(with(base("qwen3"), nested)).rope_theta, 7e5);
  EXPECT_EQ(load(with(base("qwen3"), {{"rope_theta", 8e5}, {"rope_scaling", nullptr}})).rope_theta,
            8e5);
}

TEST(Config, ScaledRopeIsRefusedByName) {
  for (const char* type : {"linear", "dynamic", "yarn", "llama3", "longrope"}) {
    const json old_form = {{"rope_scaling", {{"type", type}, {"factor", 2.0}}}};
    const json new_form = {{"rope_parameters", {{"rope_type", type}, {"rope_theta", 1e4}}}};
    for (const json& change : {old_form, new_form})
      expect_error([&] { load(with(base("llama"), change)); }, {type, "not supported"});
  }
  const json per_layer = {{"rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}}};
  expect_error([&] { load(with(base("llama"), per_layer)); }, {"full_attention"});
}

TEST(Config, SlidingWindowCoversAllLayersOrNone) {
  const auto window = [](const char* family, const json& changes) {
    return load(with(with(base(family), {{"sliding_window", 16}}), changes)).sliding_window;
  };
  EXPECT_EQ(window("qwen2", json::object()), std::nullopt);
  EXPECT_EQ(window("qwen2", {{"use_sliding_window", false}}), std::nullopt);
  EXPECT_EQ(window("qwen2", {{"use_sliding_window", true}}), std::nullopt);  // from layer 28 on
  EXPECT_EQ(window("qwen2", {{"use_sliding_window", true}, {"max_window_layers", 0}}), 16);
  EXPECT_EQ(window("llama", json::object()), std::nullopt);
  EXPECT_EQ(window("parallax_qwen3", json::object()), 16);
  const json types = {"sliding_attention", "full_attention"};
  expect_error([&] { window("qwen3", {{"use_sliding_window", true}, {"layer_types", types}}); },
               {"1 of 2 layers"});
}

TEST(Config, UnknownKeysOfOurOwnAreErrorsThatNameTheNearest) {
  expect_error([] { load(with(base("parallax_qwen3"), {{"r_nrom_init", 0}})); },
               {"r_nrom_init", "\"r_norm_init\""});
  expect_error([] { load(with(base("parallax_qwen3"), {{"num_atention_heads", 4}})); },
               {"\"num_attention_heads\""});
  EXPECT_NO_THROW(load(with(base("parallax_qwen3"), {{"transformers_version", "5.0"}})));
  EXPECT_NO_THROW(load(with(base("qwen3"), {{"something_new", 1}})));
  expect_error([] { load(with(base("qwen3"), {{"mixers", {"parallax"}}})); },
               {"mixers", "parallax_qwen3"});
}

TEST(Config, UnknownKeysAreNamedWithTheirLine) {
  const test::TempFolder folder;
  folder.write("config.json",
               "{\n  \"rope_parameters\": {\n    \"hiden_size\": 1\n  },\n  \"hiden_size\": 8\n}");
  expect_error([&] { load_config(folder.path()); },
               {"config.json: line 5: unknown key \"hiden_size\"; the nearest is \"hidden_size\""});
  folder.write("config.json", "{\"a_thing_of_its_own\": 1}");
  const std::string message = test::error_of([&] { load_config(folder.path()); });
  EXPECT_NE(message.find("line 1: unknown key"), std::string::npos) << message;
  EXPECT_EQ(message.find("nearest"), std::string::npos) << message;
}

TEST(Config, WhatIsNotBuiltIsRefusedByName) {
  const auto refuse = [](const char* family, const json& changes, std::string_view part) {
    expect_error([&] { load(with(base(family), changes)); }, {part});
  };
  refuse("parallax_qwen3", {{"r_gate", "head"}}, "r_gate is not built yet");
  refuse("llama", {{"mlp_bias", true}}, "mlp_bias");
  refuse("llama", {{"hidden_act", "gelu"}}, "gelu");
  refuse("qwen3", {{"attention_bias", true}}, "attention_bias");
  refuse("qwen3", {{"attention_dropout", 0.1}}, "attention_dropout");
  refuse("qwen3", {{"quantization_config", {{"bits", 4}}}}, "quantised");
  refuse("gpt2", json::object(), "gpt2");
}

TEST(Config, ValuesOutOfRangeAreNamed) {
  const auto refuse = [](const json& changes, std::initializer_list<std::string_view> parts) {
    expect_error([&] { load(with(base("parallax_qwen3"), changes)); }, parts);
  };
  refuse({{"hidden_size", 0}}, {"hidden_size must be positive", "0"});
  refuse({{"hidden_size", "32"}}, {"hidden_size must be an integer", "\"32\""});
  refuse({{"hidden_size", 32.5}}, {"hidden_size must be an integer", "32.5"});
  refuse({{"r_norm", 1}}, {"r_norm must be true or false"});
  refuse({{"mixers", "parallax"}}, {"mixers must be a list of strings"});
  refuse({{"mixers", {"parallax", "softmax", "softmax"}}}, {"2 layers", "got 3"});
  refuse({{"mixers", {"mamba"}}}, {"mamba", "softmax, parallax"});
  refuse({{"num_key_value_heads", 3}}, {"num_attention_heads 4", "num_key_value_heads 3"});
  refuse({{"head_dim", 257}}, {"head_dim", "257"});
  refuse({{"head_dim", 7}}, {"head_dim", "7"});
  refuse({{"sliding_window", 0}}, {"sliding_window", "0"});
  refuse({{"eos_token_id", 100}}, {"eos_token_id 100", "vocabulary of 100"});
  refuse({{"eos_token_id", {9, 100}}}, {"eos_token_id 100", "vocabulary of 100"});
  refuse({{"eos_token_id", {9, "x"}}}, {"eos_token_id must be an integer or a list of integers"});
  refuse({{"r_norm_init", -1.0}}, {"r_norm_init", "-1"});
  refuse({{"rms_norm_eps", 0.0}}, {"rms_norm_eps"});
}

TEST(Config, BrokenFilesAreNamed) {
  const test::TempFolder folder;
  expect_error([&] { load_config(folder.path()); }, {"config.json"});
  folder.write("config.json", "{\"vocab_size\": ");
  expect_error([&] { load_config(folder.path()); }, {"config.json", "parse error"});
  folder.write("config.json", "[1]");
  expect_error([&] { load_config(folder.path()); }, {"not a JSON object"});
}

TEST(Config, SeveralEndTokensAreAllKept) {
  const ModelConfig config = load(with(base("llama"), {{"eos_token_id", {9, 8}}}));
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{9, 8}));
  const json file = json::parse(to_json(config));
  EXPECT_EQ(file.at("eos_token_id"), json({9, 8}));
  EXPECT_EQ(load(file), config);
  EXPECT_EQ(
      json::parse(to_json(load(with(base("llama"), {{"eos_token_id", 9}})))).at("eos_token_id"), 9);
}

TEST(Config, WhatIsWrittenReadsBackEqual) {
  ModelConfig config;
  config.num_hidden_layers = 3;
  config.mixers = {"parallax", "softmax", "parallax"};
  config.sliding_window = 77;
  config.eos_token_ids = {5};
  config.r_norm_init = 0;
  config.rms_norm_eps = 1.0 / 3;
  config.attention_bias = config.r_proj_bias = true;
  EXPECT_EQ(load(json::parse(to_json(config))), config);
  for (const char* family : {"qwen3", "qwen2", "llama"}) {
    const ModelConfig plain = load(with(base(family), {{"rope_theta", 12345.0}}));
    EXPECT_EQ(load(json::parse(to_json(plain))), plain) << to_json(plain);
  }
}

TEST(Config, AFamilyWithForeignChoicesIsNotWritten) {
  ModelConfig config = load(base("qwen3"));
  config.mixers = {"parallax"};
  const test::TempFolder folder;
  expect_error([&] { save_config(config, folder.path()); }, {"qwen3", "parallax_qwen3"});
  EXPECT_TRUE(folder.entries().empty());
}

}  // namespace
}  // namespace parallax::nn
