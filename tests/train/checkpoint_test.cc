// The output folder of a run: what counts as a checkpoint, what is refused, what is left alone.
// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <set>

#include "nn/checkpoint.h"
#include "optim/state_file.h"
#include "train/trainer_testing.h"

namespace parallax::train {
namespace {

class CheckpointTest : public TrainerTest {
 protected:
  std::set<std::string> entries(const std::string& output) const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_ / output))
      names.insert(entry.path().filename().string());
    return names;
  }

  void edit_state(const std::function<void(nlohmann::json&)>& edit) const {
    const fs::path path = folder_ / "run/latest/training/state.json";
    auto json = nlohmann::json::parse(io::read_file(path));
    edit(json);
    io::write_file(path, json.dump());
  }
};

/// One line, of our own words, that has all parts.
void expect_refusal(const std::string& message, const std::vector<std::string>& parts) {
  for (const auto& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_EQ(message.find("json.exception"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST_F(CheckpointTest, OtherFoldersAreNoCheckpointsAndStay) {
  train_until(2, "run");
  const fs::path checkpoint = folder_ / "run/step_00000002";
  const std::vector<std::string> others = {"step_best", "step_00000001_backup", "step_zzz",
                                           "step_1", "step_00000009x"};
  for (const auto& name : others)
    fs::copy(checkpoint, folder_ / "run" / name, fs::copy_options::recursive);
  EXPECT_EQ(resume("run", {"train.steps=4", "checkpoint.keep_last=1"}).checkpoint,
            folder_ / "run/step_00000004");
  std::set<std::string> expected = {"latest", "metrics.jsonl", "step_00000004"};
  expected.insert(others.begin(), others.end());
  EXPECT_EQ(entries("run"), expected);
  EXPECT_EQ(fs::read_symlink(folder_ / "run/latest"), "step_00000004");
}

TEST_F(CheckpointTest, TheOrderIsThatOfTheNumbers) {
  for (const char* name : {"step_99999999", "step_100000000", "step_00000007"})
    fs::create_directories(folder_ / "run" / name);
  const CheckpointStore store(folder_ / "run");
  EXPECT_EQ(store.latest(), folder_ / "run/step_100000000");
  store.prune(100000000, 2);
  EXPECT_EQ(entries("run"), (std::set<std::string>{"step_99999999", "step_100000000"}));
  store.prune(99999999, 1);  // a newer one is not touched
  EXPECT_EQ(entries("run"), (std::set<std::string>{"step_99999999", "step_100000000"}));
}

TEST_F(CheckpointTest, FilesThatAreNotAsSavedAreRefused) {
  train_until(2, "run");
  train_until(2, "other", {"train.seed=2"});
  const fs::path latest = folder_ / "run/latest";
  const auto refused_with = [&](const std::string& name, const std::string& contents) {
    const std::string before = io::read_file(latest / name);
    io::write_file(latest / name, contents);
    expect_refusal(message_of([&] { resume("run"); }), {name, "has changed since"});
    io::write_file(latest / name, before);
  };
  std::string config = io::read_file(latest / "config.json");
  config.replace(config.find("10000.0"), 7, "5.0");
  refused_with("config.json", config);
  refused_with("model.safetensors", file("other/latest/model.safetensors"));
  refused_with("training/random.safetensors", "ten bytes.");
  refused_with("training/optimizer.safetensors", "");
  refused_with("training/recipe.json", "{}");
  EXPECT_EQ(resume("run", {"train.steps=3"}).state.step, 3);
}

TEST_F(CheckpointTest, AMissingFileIsNamed) {
  train_until(2, "run");
  fs::remove(folder_ / "run/latest/training/random.safetensors");
  expect_refusal(message_of([&] { resume("run"); }), {"training/random.safetensors"});
}

TEST_F(CheckpointTest, ADamagedStateIsRefusedInPlainWords) {
  train_until(2, "run");
  const std::string whole = file("run/latest/training/state.json");
  const auto refused = [&](const std::function<void(nlohmann::json&)>& edit,
                           const std::vector<std::string>& parts) {
    edit_state(edit);
    expect_refusal(message_of([&] { resume("run"); }), parts);
    io::write_file(folder_ / "run/latest/training/state.json", whole);
  };
  refused([](auto& json) { json["step"] = -7; }, {"state.json", "step -7", "negative"});
  refused([](auto& json) { json["step"] = "two"; }, {"state.json", "string"});
  refused([](auto& json) { json["step"] = 1; }, {"step_00000002", "after step 1"});
  refused([](auto& json) { json.erase("files"); }, {"state.json", "'files'"});
  refused([](auto& json) { json["format_version"] = 1; }, {"state.json", "format_version is 1"});
  refused([](auto& json) { json["data"].erase("next_sequence"); },
          {"cannot resume from", "step_00000002", "next_sequence"});
  refused([](auto& json) { json["data"]["next_sequence"] = -1; }, {"next_sequence"});
  refused([](auto& json) { json["data"] = 3; }, {"cannot resume from", "a JSON object is needed"});
  io::write_file(folder_ / "run/latest/training/state.json", "nonsense");
  expect_refusal(message_of([&] { resume("run"); }), {"state.json"});
}

TEST_F(CheckpointTest, ADamagedLineOfMetricsDoesNotBlockTheRun) {
  train_until(2, "run");
  const std::string whole = file("run/metrics.jsonl");
  io::write_file(folder_ / "run/metrics.jsonl", whole + "{\"step\":\"x\"}\n[1]\n{\"event\":");
  EXPECT_EQ(resume("run", {"train.steps=3"}).state.step, 3);
  EXPECT_EQ(file("run/metrics.jsonl").substr(0, whole.size()), whole.substr(0, whole.size()));
  EXPECT_EQ(losses("run").size(), 3U);
}

TEST_F(CheckpointTest, WhatKilledRunsLeftIsRemoved) {
  for (const bool resumes : {true, false}) {
    const std::string output = resumes ? "resumed" : "overwritten";
    train_until(2, output);
    for (const char* name : {".removed-step_00000045", ".step_00000207.staging-11-3"}) {
      fs::create_directories(folder_ / output / name / "training");
      io::write_file(folder_ / output / name / "training/state.json", "{}");
    }
    io::write_file(folder_ / output / ".metrics.jsonl.tmp-11-0", "");
    io::write_file(folder_ / output / ".notes", "the user's");
    RunOptions next = options(output);
    next.resume = resumes;
    next.overwrite = !resumes;
    Trainer(recipe({"train.steps=3", "checkpoint.keep_last=1"}), next).run();
    EXPECT_EQ(entries(output),
              (std::set<std::string>{".notes", "latest", "metrics.jsonl", "step_00000003"}));
  }
}

TEST_F(CheckpointTest, OneRunAtATimeHoldsTheFolder) {
  RunOptions resumed = options("run");
  resumed.resume = true;
  {
    const Trainer first(recipe(), options("run"));
    expect_refusal(message_of([&] { Trainer(recipe(), resumed); }),
                   {"run is in use by another process"});
  }
  EXPECT_EQ(Trainer(recipe({"train.steps=1"}), resumed).run().state.step, 1);
}

TEST_F(CheckpointTest, ARunWithoutACheckpointIsNotTrainedOver) {
  train_until(2, "run");
  fs::remove_all(folder_ / "run/step_00000002");  // as after a kill before the first checkpoint
  fs::remove(folder_ / "run/latest");
  const std::string before = file("run/metrics.jsonl");
  expect_refusal(message_of([&] { train("run"); }),
                 {"holds a run already (metrics.jsonl)", "--resume", "--overwrite"});
  EXPECT_EQ(file("run/metrics.jsonl"), before);
  RunOptions next = options("run");
  next.resume = true;
  EXPECT_EQ(Trainer(recipe(), next).warnings(),
            std::vector<std::string>{(folder_ / "run").string() +
                                     " has no checkpoint: the run starts again at its first step"});
  next.output = folder_ / "new";
  EXPECT_TRUE(Trainer(recipe(), next).warnings().empty());
}

class HugeOptimizer : public optim::Optimizer {
 public:
  void step(const optim::StepScales&) override {}
  std::map<std::string, torch::Tensor> state() const override {
    return {{"huge", torch::zeros({1}).expand({int64_t{1} << 50})}};
  }
  void load_state(const std::map<std::string, torch::Tensor>&) override {}
};

TEST_F(CheckpointTest, ADiskWithoutRoomForACheckpointIsRefused) {
  nn::Decoder model(recipe().model.fields);
  const CheckpointStore store(folder_);
  expect_refusal(
      message_of([&] { store.check_space(model, HugeOptimizer()); }),
      {"a checkpoint takes 42949672", " MiB, and the disk of " + folder_.string(), " MiB left"});
  EXPECT_NO_THROW(store.check_space(model, HugeOptimizer(), uint64_t{5} << 50));
  EXPECT_EQ(store.num_bytes(), 0U);
  fs::create_directories(folder_ / "step_00000003/training");
  io::write_file(folder_ / "step_00000003/training/state.json", "12345");
  io::write_file(folder_ / "step_00000003/config.json", "67");
  EXPECT_EQ(store.num_bytes(), 7U);
}

TEST_F(CheckpointTest, ChangedDataIsRefusedAtTheStartAndOnResuming) {
  for (const char* shard : {"train-00000.bin", "validation-00000.bin"}) {
    const fs::path tokens = write_tokens(std::string("tokens_") + shard, 100);
    const std::string output = std::string("run_") + shard;
    train_until(2, output, settings_for(tokens));
    damage_token(tokens / shard, 70);
    for (const auto& refusal : {message_of([&] { resume(output, settings_for(tokens)); }),
                                message_of([&] { train("new", settings_for(tokens)); })})
      expect_refusal(refusal, {shard, "the tokens have changed since they were written"});
  }
}

TEST_F(CheckpointTest, SettingsThatTheRunHasNoUseForAreWarnings) {
  const fs::path tokens = write_tokens("tokens");
  EXPECT_EQ(Trainer(recipe(settings_for(tokens)), options("a")).warnings(),
            std::vector<std::string>{"evaluation.num_sequences has no effect: " + tokens.string() +
                                     " has no validation split"});
  auto settings = settings_for(tokens);
  settings.emplace_back("evaluation.num_sequences=0");
  EXPECT_TRUE(Trainer(recipe(settings), options("b")).warnings().empty());
  EXPECT_TRUE(
      Trainer(recipe(settings_for(write_tokens("both", 100))), options("c")).warnings().empty());

  io::write_file(folder_ / "recipe.toml",
                 std::string(kTinyRecipe) +
                     "[[optimizer.groups]]\npattern = \"*.q_proj.weight\"\nrow_splits = [8, 24]\n");
  EXPECT_TRUE(Trainer(recipe(), options("d")).warnings().empty());
  EXPECT_EQ(Trainer(recipe({"optimizer.name=adamw"}), options("e")).warnings(),
            std::vector<std::string>{
                "optimizer.groups: row_splits have no effect on "
                "model.layers.0.self_attn.q_proj.weight and 1 more: AdamW trains them"});
}

TEST_F(CheckpointTest, WeightsOfAnotherTokenizerAreNotTrainedOn) {
  const fs::path tokens = write_tokens("tokens");
  train_until(1, "bytes", settings_for(tokens));
  const fs::path latest = folder_ / "bytes/latest";
  EXPECT_EQ(nn::load_tokenizer_fingerprint(latest), text::make_byte_tokenizer()->fingerprint());
  io::write_file(folder_ / "recipe.toml",
                 "[model]\ninit_from = \"" + latest.string() + "\"\n[data]\npath = \"" +
                     tokens.string() + "\"\ncontext_length = 16\n[train]\ndevice = \"cpu\"\n");
  EXPECT_NO_THROW(Trainer(recipe(), options("same")));
  nn::save_pretrained(nn::load_pretrained(latest), latest, {.tokenizer_fingerprint = "other"});
  expect_refusal(message_of([&] { Trainer(recipe(), options("other")); }),
                 {"model.init_from", "another tokenizer", "other"});
  nn::save_pretrained(nn::load_pretrained(latest), latest);  // as from elsewhere: says nothing
  EXPECT_NO_THROW(Trainer(recipe(), options("elsewhere")));
}

}  // namespace
}  // namespace parallax::train
