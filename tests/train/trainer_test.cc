// Whole runs in the process: resuming, stopping on bad numbers, twins, refusals.
// Signals, kills and full disks are tested on the program in tests/python/test_train.py.
// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <limits>

#include "optim/state_file.h"
#include "parallax/error.h"
#include "train/trainer_testing.h"

namespace parallax::train {
namespace {

namespace fs = std::filesystem;

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "(accepted)";
}

struct ResumeCase {
  std::string name;
  std::vector<std::string> settings;
};

class ResumeTest : public TrainerTest, public ::testing::WithParamInterface<ResumeCase> {};

TEST_P(ResumeTest, twentyStepsEqualTenAndTenMoreBitForBit) {
  const auto& settings = GetParam().settings;
  train("whole", settings);
  RunOptions half = options("parts");
  half.stop_at = 10;
  const RunSummary first = Trainer(recipe(settings), half).run();
  EXPECT_EQ(first.state.step, 10);
  EXPECT_EQ(first.checkpoint.filename(), "step_00000010");
  const RunSummary second = resume("parts", settings);
  EXPECT_EQ(second.state.step, 20);
  for (const char* name : {"model.safetensors", "training/optimizer.safetensors",
                           "training/random.safetensors", "config.json", "training/recipe.json"})
    EXPECT_TRUE(file(std::string("whole/latest/") + name) ==
                file(std::string("parts/latest/") + name))
        << name;
  EXPECT_EQ(losses("whole"), losses("parts"));
  EXPECT_EQ(losses("whole").size(), 20U);
}

INSTANTIATE_TEST_SUITE_P(
    Settings, ResumeTest,
    ::testing::Values(ResumeCase{"float32", {}}, ResumeCase{"bfloat16", {"train.compute=bfloat16"}},
                      ResumeCase{"bfloat16_accumulation_checkpointing",
                                 {"train.compute=bfloat16", "train.micro_batch_size=2",
                                  "train.activation_checkpointing=true"}},
                      ResumeCase{"float32_accumulation_adamw",
                                 {"train.micro_batch_size=1", "optimizer.name=adamw",
                                  "schedule.kind=cosine"}}),
    [](const auto& instance) { return instance.param.name; });

TEST_F(TrainerTest, lossFalls) {
  train("run", {"train.steps=40"});
  const auto values = losses("run");
  EXPECT_LT(values.back(), values.front() - 0.3);
}

TEST_F(TrainerTest, lossesStayWhatTheyWere) {
  // Rounding alone, the order of sums in micro-batches, moves a loss by this much; other machines'
  // kernels may move it ten times as far.
  train("whole", {"train.steps=6"});
  train("split", {"train.steps=6", "train.micro_batch_size=1"});
  const std::vector<double> expected = {2.8183222, 2.8009842, 2.7960134,
                                        2.7881928, 2.7523575, 2.7643799};
  const auto whole = losses("whole"), split = losses("split");
  ASSERT_EQ(whole.size(), expected.size());
  double rounding = 1e-6;
  for (size_t i = 0; i < whole.size(); ++i) {
    rounding = std::max(rounding, std::abs(whole[i] - split[i]));
    EXPECT_NEAR(whole[i], expected[i], 10 * rounding) << "step " << i + 1;
  }
}

TEST_F(TrainerTest, twinsStartFromTheSameValuesAndSeeTheSameData) {
  Trainer softmax(recipe({"model.mixers=softmax"}), options("softmax"));
  Trainer parallax_twin(recipe({"model.r_norm_init=0"}), options("parallax"));
  const auto shared = softmax.model()->named_parameters();
  const auto all = parallax_twin.model()->named_parameters();
  EXPECT_GT(all.size(), shared.size());
  for (const auto& entry : shared)
    EXPECT_TRUE(torch::equal(entry.value(), *all.find(entry.key()))) << entry.key();
  softmax.run();
  parallax_twin.run();
  // With a zero gain the Parallax twin is the softmax twin until its first step.
  EXPECT_NEAR(losses("softmax")[0], losses("parallax")[0], 1e-6);
  EXPECT_NE(losses("softmax")[5], losses("parallax")[5]);
}

TEST_F(TrainerTest, embeddingInitStdSpreadsTheEmbeddingOnly) {
  Trainer plain(recipe(), options("plain"));
  Trainer spread(recipe({"train.embedding_init_std=0.5"}), options("spread"));
  const auto before = plain.model()->named_parameters(), after = spread.model()->named_parameters();
  for (const auto& entry : before) {
    const double factor = entry.key() == "model.embed_tokens.weight" ? 0.5 / 0.02 : 1;
    EXPECT_TRUE(torch::allclose(*after.find(entry.key()), entry.value() * factor, 1e-6, 0))
        << entry.key();
  }
}

TEST_F(TrainerTest, anInfiniteGradientStopsTheRunWithTheStateBeforeIt) {
  RunOptions reference = options("reference");
  reference.stop_at = 4;
  Trainer(recipe(), reference).run();

  Trainer trainer(recipe(), options("run"));
  const std::string name = "model.layers.1.self_attn.r_proj.weight";
  int num_calls = 0;
  trainer.model()->named_parameters().find(name)->register_hook([&](const torch::Tensor& gradient) {
    if (++num_calls < 5) return gradient;
    return gradient.clone().index_put_({0, 0}, std::numeric_limits<float>::infinity());
  });
  const std::string message = message_of([&] { trainer.run(); });
  EXPECT_NE(message.find("step 5: the gradient of " + name + " is NaN or infinite"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("step_00000004"), std::string::npos) << message;
  for (const char* file_name : {"model.safetensors", "training/optimizer.safetensors"})
    EXPECT_TRUE(file(std::string("run/latest/") + file_name) ==
                file(std::string("reference/latest/") + file_name));
  EXPECT_EQ(metrics("run", "not_finite").at(0).at("step"), 5);
  // The fault gone, the run goes on where the good state was.
  resume("run");
  train("whole");
  EXPECT_EQ(losses("run"), losses("whole"));
}

TEST_F(TrainerTest, weightsThatAreNotFiniteAreNeverSaved) {
  RunOptions first = options("run");
  first.stop_at = 2;
  Trainer(recipe(), first).run();
  RunOptions second = options("run");
  second.resume = true;
  Trainer trainer(recipe(), second);
  {
    torch::NoGradGuard no_grad;
    trainer.model()
        ->named_parameters()
        .find("model.norm.weight")
        ->fill_(std::numeric_limits<float>::quiet_NaN());
  }
  const std::string message = message_of([&] { trainer.run(); });
  EXPECT_NE(message.find("step 3: the loss is NaN or infinite"), std::string::npos) << message;
  EXPECT_NE(message.find("step_00000002"), std::string::npos) << message;
  resume("run");
}

TEST_F(TrainerTest, resumingWithOtherSettingsListsWhatDiffers) {
  RunOptions half = options("run");
  half.stop_at = 2;
  Trainer(recipe(), half).run();
  const std::string message = message_of(
      [&] { resume("run", {"optimizer.lr=0.5", "data.seed=4", "model.hidden_size=64"}); });
  for (const char* part :
       {"model.hidden_size: 32 in the checkpoint, 64 now", "data.seed: 1 in the checkpoint, 4 now",
        "optimizer.lr: 0.02 in the checkpoint, 0.5 now", "train.steps"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_EQ(resume("run", {"train.steps=4", "logging.every_steps=2"}).state.step, 4);
}

TEST_F(TrainerTest, anOlderRunIsNeitherTrainedOverNorIgnored) {
  train("run", {"train.steps=2"});
  const std::string message = message_of([&] { train("run", {"train.steps=2"}); });
  EXPECT_NE(message.find("--resume"), std::string::npos) << message;
  RunOptions anew = options("run");
  anew.overwrite = true;
  Trainer(recipe({"train.steps=1"}), anew).run();
  EXPECT_FALSE(fs::exists(folder_ / "run/step_00000002"));
  EXPECT_EQ(losses("run").size(), 1U);
}

TEST_F(TrainerTest, resumingAFinishedRunChangesNothing) {
  train("run", {"train.steps=2"});
  const std::string before = file("run/latest/model.safetensors");
  EXPECT_EQ(resume("run", {"train.steps=2"}).state.step, 2);
  EXPECT_EQ(file("run/latest/model.safetensors"), before);
}

TEST_F(TrainerTest, keepsTheLastCheckpointsOnly) {
  train("run", {"train.steps=5", "checkpoint.every_steps=1", "checkpoint.keep_last=2"});
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_ / "run"))
    names.insert(entry.path().filename().string());
  EXPECT_EQ(names,
            (std::set<std::string>{"latest", "metrics.jsonl", "step_00000004", "step_00000005"}));
  EXPECT_EQ(fs::read_symlink(folder_ / "run/latest"), "step_00000005");
}

TEST_F(TrainerTest, aSaveThatFailsLeavesTheLastCheckpointWhole) {
  RunOptions first = options("run");
  first.stop_at = 2;
  Trainer(recipe(), first).run();
  io::write_file(folder_ / "run/step_00000003", "in the way");
  RunOptions second = options("run");
  second.resume = true;
  second.stop_at = 3;
  const std::string message =
      message_of([&] { Trainer(recipe({"checkpoint.every_steps=1"}), second).run(); });
  EXPECT_NE(message.find("step_00000003"), std::string::npos) << message;
  fs::remove(folder_ / "run/step_00000003");
  EXPECT_EQ(resume("run").state.step, 20);
}

TEST_F(TrainerTest, refusesADamagedCheckpoint) {
  RunOptions first = options("run");
  first.stop_at = 2;
  Trainer(recipe(), first).run();
  const fs::path training = folder_ / "run/latest/training";
  auto state = optim::load_tensors(training / "optimizer.safetensors");
  const std::string missing = state.begin()->first;
  state.erase(state.begin());
  optim::save_tensors(training / "optimizer.safetensors", state);
  EXPECT_NE(message_of([&] { resume("run"); }).find("'" + missing + "' is missing"),
            std::string::npos);
  io::write_file(training / "state.json", "{\"format_version\": 1}");
  EXPECT_NE(message_of([&] { resume("run"); }).find("state.json"), std::string::npos);
  io::write_file(training / "state.json", "nonsense");
  EXPECT_NE(message_of([&] { resume("run"); }).find("state.json"), std::string::npos);
}

TEST_F(TrainerTest, startsFromACheckpointsWeights) {
  train("first", {"train.steps=3"});
  io::write_file(folder_ / "recipe.toml",
                 "[model]\ninit_from = \"" + (folder_ / "first/latest").string() +
                     "\"\n[data]\nkind = \"in_context_recall\"\ncontext_length = 16\n[train]\n"
                     "steps = 1\ndevice = \"cpu\"\n");
  Trainer second(recipe(), options("second"));
  const auto saved = optim::load_tensors(folder_ / "first/latest/model.safetensors");
  for (const auto& entry : second.model()->named_parameters())
    EXPECT_TRUE(torch::equal(entry.value(), saved.at(entry.key()))) << entry.key();
  EXPECT_NE(message_of([&] { recipe({"model.hidden_size=64"}); }).find("init_from"),
            std::string::npos);
}

}  // namespace
}  // namespace parallax::train
