// Whole runs in the process: resuming, stopping on bad numbers, twins, refusals.
// Signals, kills and full disks are tested on the program in tests/python/test_train.py.
// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <limits>
#include <memory>

#include "optim/state_file.h"
#include "train/trainer_testing.h"

namespace parallax::train {
namespace {

struct ResumeCase {
  std::string name;
  std::vector<std::string> settings;
};

class ResumeTest : public TrainerTest, public ::testing::WithParamInterface<ResumeCase> {};

TEST_P(ResumeTest, TwentyStepsEqualTenAndTenMoreBitForBit) {
  const auto& settings = GetParam().settings;
  train("whole", settings);
  RunOptions half = options("parts");
  half.stop_at = 10;
  const RunSummary first = Trainer(recipe(settings), half).run();
  EXPECT_EQ(first.state.step, 10);
  EXPECT_EQ(first.checkpoint.filename(), "step_00000010");
  torch::manual_seed(99);  // a new process's generator is not where the first part left this one
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

TEST_F(TrainerTest, LossFalls) {
  train("run", {"train.steps=40"});
  const auto values = losses("run");
  EXPECT_LT(values.back(), values.front() - 0.3);
}

TEST_F(TrainerTest, LossesStayWhatTheyWere) {
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

TEST_F(TrainerTest, TwinsStartFromTheSameValuesAndSeeTheSameData) {
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

TEST_F(TrainerTest, TokensAreCountedOverTheWholeRun) {
  const std::vector<std::string> settings = {"train.steps=6", "logging.every_steps=2",
                                             "evaluation.every_steps=3"};
  EXPECT_EQ(train_until(3, "run", settings).state.num_tokens, 3 * 4 * 15);
  EXPECT_EQ(resume("run", settings).state.num_tokens, 6 * 4 * 15);
  for (const char* event : {"train", "evaluation", "end"}) {
    const auto lines = metrics("run", event);
    EXPECT_GE(lines.size(), 2U) << event;
    for (const auto& line : lines)  // of 4 sequences of 15 inputs each
      EXPECT_EQ(line.at("tokens"), line.at("step").get<int64_t>() * 4 * 15) << line;
  }
}

TEST_F(TrainerTest, EvaluatesInTheDtypeThatItTrainsIn) {
  const Recipe bfloat16 = recipe({"train.compute=bfloat16", "train.steps=2"});
  Trainer trainer(bfloat16, options("run"));
  const double loss = trainer.run().evaluation.value().loss;
  Recipe other = bfloat16;
  const TaskData data = open_task_data(other);
  const auto loss_in = [&](torch::ScalarType compute) {
    nn::Decoder model = trainer.model();
    return evaluate(model, *data.validation,
                    {.num_sequences = 8, .batch_size = 4, .compute = compute})
        .loss;
  };
  EXPECT_EQ(loss, loss_in(torch::kBFloat16));
  EXPECT_NE(loss, loss_in(torch::kFloat32));
}

TEST_F(TrainerTest, EmbeddingInitStdSpreadsTheEmbeddingOnly) {
  Trainer plain(recipe(), options("plain"));
  Trainer spread(recipe({"train.embedding_init_std=0.5"}), options("spread"));
  const auto before = plain.model()->named_parameters(), after = spread.model()->named_parameters();
  for (const auto& entry : before) {
    const double factor = entry.key() == "model.embed_tokens.weight" ? 0.5 / 0.02 : 1;
    EXPECT_TRUE(torch::allclose(*after.find(entry.key()), entry.value() * factor, 1e-6, 0))
        << entry.key();
  }
}

TEST_F(TrainerTest, AnInfiniteGradientStopsTheRunWithTheStateBeforeIt) {
  RunOptions reference = options("reference");
  reference.stop_at = 4;
  Trainer(recipe(), reference).run();

  auto trainer = std::make_unique<Trainer>(recipe(), options("run"));
  const std::string name = "model.layers.1.self_attn.r_proj.weight";
  int num_calls = 0;
  trainer->model()->named_parameters().find(name)->register_hook(
      [&](const torch::Tensor& gradient) {
        if (++num_calls < 5) return gradient;
        return gradient.clone().index_put_({0, 0}, std::numeric_limits<float>::infinity());
      });
  const std::string message = message_of([&] { trainer->run(); });
  EXPECT_NE(message.find("step 5: the gradient of " + name + " is NaN, infinite or beyond"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("step_00000004"), std::string::npos) << message;
  for (const char* file_name : {"model.safetensors", "training/optimizer.safetensors"})
    EXPECT_TRUE(file(std::string("run/latest/") + file_name) ==
                file(std::string("reference/latest/") + file_name));
  EXPECT_EQ(metrics("run", "not_finite").at(0).at("step"), 5);
  // The fault gone, the run goes on where the good state was.
  trainer.reset();  // lets go of the folder
  resume("run");
  train("whole");
  EXPECT_EQ(losses("run"), losses("whole"));
}

TEST_F(TrainerTest, WeightsThatAreNotFiniteAreNeverSaved) {
  RunOptions first = options("run");
  first.stop_at = 2;
  Trainer(recipe(), first).run();
  RunOptions second = options("run");
  second.resume = true;
  auto trainer = std::make_unique<Trainer>(recipe(), second);
  {
    torch::NoGradGuard no_grad;
    trainer->model()
        ->named_parameters()
        .find("model.norm.weight")
        ->fill_(std::numeric_limits<float>::quiet_NaN());
  }
  const std::string message = message_of([&] { trainer->run(); });
  EXPECT_EQ(message.find("step 2: model.norm.weight is NaN, infinite or beyond"), 0U) << message;
  EXPECT_NE(message.find("step_00000002"), std::string::npos) << message;
  trainer.reset();  // lets go of the folder
  resume("run");
}

constexpr const char* kPoisoned = "model.layers.1.mlp.down_proj.weight";

TEST_F(TrainerTest, AWeightThatAStepMadeNaNIsNeverSaved) {
  auto trainer = std::make_unique<Trainer>(recipe({"checkpoint.every_steps=1"}), options("run"));
  poison(*trainer, kPoisoned, 5, std::numeric_limits<float>::quiet_NaN());
  const std::string message = message_of([&] { trainer->run(); });
  EXPECT_NE(message.find(std::string("step 5: ") + kPoisoned + " is NaN, infinite or beyond"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("not saved"), std::string::npos) << message;
  EXPECT_NE(message.find("the newest checkpoint is"), std::string::npos) << message;
  EXPECT_FALSE(fs::exists(folder_ / "run/step_00000005"));
  EXPECT_EQ(fs::read_symlink(folder_ / "run/latest"), "step_00000004");
  EXPECT_EQ(metrics("run", "not_finite").at(0).at("tensor"), kPoisoned);
  trainer.reset();  // lets go of the folder
  resume("run");
  train("whole");
  EXPECT_EQ(losses("run"), losses("whole"));
}

TEST_F(TrainerTest, TheMessageIsTrueWhereNoCheckpointIsLeft) {
  Trainer trainer(recipe(), options("run"));
  poison(trainer, kPoisoned, 3, std::numeric_limits<float>::infinity());
  const std::string message = message_of([&] { trainer.run(); });
  EXPECT_NE(message.find("there is no checkpoint yet"), std::string::npos) << message;
  EXPECT_FALSE(fs::exists(folder_ / "run/latest"));
}

TEST_F(TrainerTest, AWeightThatRunsAwayIsNotSavedAndTheLastGoodStateGoesOn) {
  auto trainer = std::make_unique<Trainer>(
      recipe({"checkpoint.every_steps=1", "checkpoint.keep_last=1"}), options("run"));
  poison(*trainer, kPoisoned, 5, 1e16F);
  const std::string message = message_of([&] { trainer->run(); });
  EXPECT_EQ(message.find(std::string("step 5: ") + kPoisoned + " is NaN, infinite or beyond"), 0U)
      << message;
  EXPECT_NE(message.find("that state is not saved; the newest checkpoint is"), std::string::npos)
      << message;
  EXPECT_NE(message.find("step_00000004"), std::string::npos) << message;
  trainer.reset();
  EXPECT_EQ(fs::read_symlink(folder_ / "run/latest"), "step_00000004");
  resume("run");
  train("whole");
  EXPECT_EQ(losses("run"), losses("whole"));
}

TEST_F(TrainerTest, AStateToGoOnFromIsSavedBeforeWeightsRunAway) {
  // Each step multiplies the matrices by 1 - lr * weight_decay, about -1e6.
  const std::vector<std::string> settings = {"optimizer.lr=1000", "optimizer.weight_decay=1000",
                                             "optimizer.norm_lr_multiplier=0",
                                             "optimizer.embedding_lr_multiplier=0"};
  const std::string message = message_of([&] { train("run", settings); });
  EXPECT_EQ(message.find("step 3: "), 0U) << message;
  ASSERT_EQ(CheckpointStore(folder_ / "run").latest(), folder_ / "run/step_00000001");
  EXPECT_EQ(message_of([&] { resume("run", settings); }).find("step 3: "), 0U);
}

TEST_F(TrainerTest, MemoryThatRunsOutNamesTheMicroBatchAndTheStateIsSaved) {
  Trainer trainer(recipe(), options("run"));
  int num_calls = 0;
  trainer.model()->named_parameters().find(kPoisoned)->register_hook(
      [&](const torch::Tensor& gradient) {
        TORCH_CHECK_WITH(OutOfMemoryError, ++num_calls < 4, "tried to allocate 1 PiB");
        return gradient;
      });
  const std::string message = message_of([&] { trainer.run(); });
  EXPECT_EQ(message.find("step 4: out of memory on cpu"), 0U) << message;
  EXPECT_NE(message.find("train.micro_batch_size is 4"), std::string::npos) << message;
  EXPECT_NE(message.find("tried to allocate 1 PiB"), std::string::npos) << message;
  EXPECT_TRUE(fs::exists(folder_ / "run/step_00000003")) << message;
}

TEST_F(TrainerTest, ARescueDeletesNothing) {
  Trainer trainer(recipe({"checkpoint.every_steps=2", "checkpoint.keep_last=1"}), options("run"));
  int num_calls = 0;
  trainer.model()->named_parameters().find(kPoisoned)->register_hook(
      [&](const torch::Tensor& gradient) {
        return ++num_calls < 4 ? gradient : gradient * std::numeric_limits<float>::infinity();
      });
  const std::string message = message_of([&] { trainer.run(); });
  EXPECT_EQ(message.find("step 4: "), 0U) << message;
  EXPECT_TRUE(fs::exists(folder_ / "run/step_00000002"));
  EXPECT_TRUE(fs::exists(folder_ / "run/step_00000003"));
}

TEST_F(TrainerTest, AGradientTooLargeForTheOptimizerStopsTheRunBeforeTheStep) {
  for (const auto& [clip_norm, stops] : {std::pair{"0", true}, std::pair{"1", false}}) {
    const std::string output = std::string("clip_") + clip_norm;
    Trainer trainer(recipe({std::string("train.clip_norm=") + clip_norm}), options(output));
    trainer.model()->named_parameters().find(kPoisoned)->register_hook(
        [](const torch::Tensor& gradient) { return torch::full_like(gradient, 1e16F); });
    const std::string message = message_of([&] { trainer.run(); });
    EXPECT_EQ(message.find("step 1: the norm of the gradient is") == 0, stops) << message;
    for (const auto& [name, tensor] :
         optim::load_tensors(folder_ / output / "latest/training/optimizer.safetensors"))
      EXPECT_TRUE(tensor.isfinite().all().item<bool>()) << name;
  }
}

TEST_F(TrainerTest, AStepFromTheLargestNumbersAllowedOverflowsNothing) {
  const std::vector<std::string> extremes = {
      "optimizer.lr=1000",   "optimizer.embedding_lr_multiplier=1000",
      "optimizer.eps=1e-15", "optimizer.norm_lr_multiplier=1000",
      "optimizer.beta2=0",   "optimizer.weight_decay=1000"};
  for (const std::string name : {"muon", "adamw"}) {
    for (const std::string beta1 : {"0", "0.9", "0.999999"}) {
      auto settings = extremes;
      settings.insert(settings.end(), {"optimizer.name=" + name, "optimizer.beta1=" + beta1});
      nn::Decoder model(recipe().model.fields);
      const auto options = optimizer_options(recipe(settings).optimizer);
      const auto optimizer =
          optim::make_optimizer(optim::plan_parameters(named_parameters(model), options), options);
      // A huge gradient leaves a large first moment; a zero one then leaves AdamW eps to divide by.
      for (const double gradient_norm : {kLargestNorm, 0.0, 1e-30, kLargestNorm}) {
        torch::NoGradGuard no_grad;
        for (auto& weight : model->parameters()) {
          const double entry = 1 / std::sqrt(static_cast<double>(weight.numel()));
          weight.fill_(0.99 * kLargestNorm * entry);
          weight.mutable_grad() = torch::full_like(weight, gradient_norm * entry);
        }
        ASSERT_EQ(first_weight_beyond(kLargestNorm, model), std::nullopt);
        optimizer->step({});
        for (const auto& entry : model->named_parameters())
          EXPECT_TRUE(entry.value().isfinite().all().item<bool>()) << name << " " << entry.key();
        for (const auto& [key, tensor] : optimizer->state())
          EXPECT_TRUE(tensor.isfinite().all().item<bool>()) << name << " " << key;
      }
    }
  }
}

TEST_F(TrainerTest, ACheckpointWithATensorThatIsNotFiniteIsRefused) {
  torch::manual_seed(1);
  nn::Decoder model(recipe().model.fields);
  const auto options = optimizer_options(recipe({"optimizer.name=adamw"}).optimizer);
  const auto optimizer =
      optim::make_optimizer(optim::plan_parameters(named_parameters(model), options), options);
  auto state = optimizer->state();
  const std::string bad = "model.norm.weight.exp_avg_sq";
  state.at(bad) = torch::full_like(state.at(bad), std::numeric_limits<float>::infinity());
  optimizer->load_state(state);
  const CheckpointStore store(folder_ / "run");
  const std::string message = message_of([&] { store.save(model, *optimizer, {}, nullptr); });
  EXPECT_NE(message.find(bad + " is NaN or infinite"), std::string::npos) << message;
  EXPECT_EQ(store.latest(), std::nullopt);
}

TEST_F(TrainerTest, ABatchThatCannotBeReadStopsTheRunWithTheStateBeforeIt) {
  const fs::path tokens = write_tokens("tokens");
  auto settings = settings_for(tokens);
  settings.emplace_back("train.steps=25");
  Trainer trainer(recipe(settings), options("run"));
  damage_token(tokens / "train-00000.bin", 800);  // after the data was checked
  const std::string message = message_of([&] { trainer.run(); });
  EXPECT_NE(message.find("token id 65535"), std::string::npos) << message;
  const int64_t num_done = static_cast<int64_t>(losses("run").size());
  ASSERT_GE(num_done, 1) << "choose another place for the bad token";
  EXPECT_EQ(message.find("step " + std::to_string(num_done + 1) + ": "), 0U) << message;
  EXPECT_NE(message.find("is saved in"), std::string::npos) << message;
  EXPECT_EQ(load_checkpoint(folder_ / "run/latest").state.step, num_done);
}

TEST_F(TrainerTest, AMissingTokenFolderIsAnErrorThatSaysHowToMakeOne) {
  const std::string tokens = (folder_ / "absent").string();
  const std::string message =
      message_of([&] { train("run", {"data.kind=shards", "data.path=" + tokens}); });
  EXPECT_NE(message.find("plx prepare --output " + tokens), std::string::npos) << message;
}

TEST_F(TrainerTest, ResumingWithOtherStepsWarnsWhereTheScheduleMoves) {
  RunOptions part = options("run");
  part.stop_at = 18;  // of 20; the last 4 decay
  Trainer(recipe(), part).run();
  RunOptions resumed = options("run");
  resumed.resume = true;
  EXPECT_TRUE(Trainer(recipe(), resumed).warnings().empty());
  const auto warnings = Trainer(recipe({"train.steps=40"}), resumed).warnings();
  EXPECT_EQ(warnings, std::vector<std::string>{
                          "train.steps was 20 and is 40 now, which moves the decay of the wsd "
                          "schedule: the next step has a learning rate of 0.02, before it was to "
                          "be 0.01; the decay that had begun is undone"});
  part = options("constant");
  part.stop_at = 2;
  Trainer(recipe({"schedule.kind=constant"}), part).run();
  resumed.output = folder_ / "constant";
  EXPECT_TRUE(
      Trainer(recipe({"schedule.kind=constant", "train.steps=40"}), resumed).warnings().empty());
}

TEST_F(TrainerTest, ResumingWithOtherSettingsListsWhatDiffers) {
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

TEST_F(TrainerTest, AnOlderRunIsNeitherTrainedOverNorIgnored) {
  train("run", {"train.steps=2"});
  const std::string message = message_of([&] { train("run", {"train.steps=2"}); });
  EXPECT_NE(message.find("--resume"), std::string::npos) << message;
  RunOptions anew = options("run");
  anew.overwrite = true;
  Trainer(recipe({"train.steps=1"}), anew).run();
  EXPECT_FALSE(fs::exists(folder_ / "run/step_00000002"));
  EXPECT_EQ(losses("run").size(), 1U);
}

TEST_F(TrainerTest, ARunThatCannotStartLeavesTheOlderOneAsItWas) {
  train("run", {"train.steps=2"});
  const std::string weights = file("run/latest/model.safetensors"),
                    lines = file("run/metrics.jsonl");
  fs::copy(folder_ / "run/step_00000002", folder_ / "cut");
  fs::resize_file(folder_ / "cut/model.safetensors", 3000);
  fs::create_directory_symlink(folder_ / "run/latest", folder_ / "link");
  const std::string rest =
      "[data]\nkind = \"in_context_recall\"\ncontext_length = 16\n[train]\ndevice = \"cpu\"\n";
  const auto from = [&](const char* name) {
    return "[model]\ninit_from = \"" + (folder_ / name).string() + "\"\n" + rest;
  };
  const std::string group = "[[optimizer.groups]]\npattern = \"nomatch*\"\n";
  for (const auto& [text, part] :
       {std::pair{from("run/latest"), "which --overwrite deletes: write to another --output"},
        {from("link"), "which --overwrite deletes: write to another --output"},
        {from("cut"), "cut/model.safetensors"},
        {kTinyRecipe + group, "matches no parameter"}}) {
    io::write_file(folder_ / "recipe.toml", text);
    RunOptions anew = options("run");
    anew.overwrite = true;
    const std::string message = message_of([&] { Trainer(recipe(), anew); });
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_TRUE(fs::exists(folder_ / "run/step_00000002")) << message;
    ASSERT_EQ(file("run/latest/model.safetensors"), weights) << message;
    EXPECT_EQ(file("run/metrics.jsonl"), lines) << message;
  }
}

TEST_F(TrainerTest, ResumingAFinishedRunChangesNothing) {
  train("run", {"train.steps=2"});
  const std::string weights = file("run/latest/model.safetensors"),
                    lines = file("run/metrics.jsonl");
  const RunSummary again = resume("run", {"train.steps=2"});
  EXPECT_EQ(again.state.step, 2);
  EXPECT_TRUE(again.evaluation.has_value());
  EXPECT_EQ(file("run/latest/model.safetensors"), weights);
  EXPECT_EQ(file("run/metrics.jsonl"), lines);
  // What the lines do not say yet is added: an end that a kill cut off, a new last step.
  const std::string cut = lines.substr(0, lines.find("{\"accuracy\"", lines.size() / 2) + 20);
  ASSERT_LT(cut.size(), lines.size());
  io::write_file(folder_ / "run/metrics.jsonl", cut);
  resume("run", {"train.steps=2"});
  EXPECT_EQ(metrics("run", "end").size(), 1U);
  EXPECT_EQ(metrics("run", "evaluation").size(), 1U);
  train_until(2, "stopped", {"train.steps=3"});
  EXPECT_FALSE(metrics("stopped", "end").at(0).at("finished"));
  resume("stopped", {"train.steps=2"});
  EXPECT_TRUE(metrics("stopped", "end").at(1).at("finished"));
}

TEST_F(TrainerTest, ActivationCheckpointingMayBeTurnedOnWhenTheRunGoesOn) {
  train("whole");
  train_until(10, "parts");
  resume("parts", {"train.activation_checkpointing=true"});
  for (const char* name : {"model.safetensors", "training/optimizer.safetensors"})
    EXPECT_TRUE(file(std::string("whole/latest/") + name) ==
                file(std::string("parts/latest/") + name))
        << name;
}

TEST_F(TrainerTest, KeepsTheLastCheckpointsOnly) {
  train("run", {"train.steps=5", "checkpoint.every_steps=1", "checkpoint.keep_last=2"});
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_ / "run"))
    names.insert(entry.path().filename().string());
  EXPECT_EQ(names,
            (std::set<std::string>{"latest", "metrics.jsonl", "step_00000004", "step_00000005"}));
  EXPECT_EQ(fs::read_symlink(folder_ / "run/latest"), "step_00000005");
}

TEST_F(TrainerTest, ASaveThatFailsLeavesTheLastCheckpointWhole) {
  RunOptions first = options("run");
  first.stop_at = 2;
  Trainer(recipe(), first).run();
  io::write_file(folder_ / "run/step_00000003", "in the way");
  RunOptions second = options("run");
  second.resume = true;
  second.stop_at = 3;
  const std::string message =
      message_of([&] { Trainer(recipe({"checkpoint.every_steps=1"}), second).run(); });
  EXPECT_NE(message.find("the state after step 3 is not saved: "), std::string::npos) << message;
  EXPECT_NE(message.find("the newest checkpoint is"), std::string::npos) << message;
  EXPECT_NE(message.find("step_00000003"), std::string::npos) << message;
  fs::remove(folder_ / "run/step_00000003");
  EXPECT_EQ(resume("run").state.step, 20);
}

TEST_F(TrainerTest, StartsFromACheckpointsWeights) {
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

TEST_F(TrainerTest, GoesOnWithoutTheWeightsItStartedFrom) {
  train("first", {"train.steps=3"});
  io::write_file(folder_ / "recipe.toml",
                 "[model]\ninit_from = \"" + (folder_ / "first/latest").string() +
                     "\"\n[data]\nkind = \"in_context_recall\"\ncontext_length = 16\n[train]\n"
                     "steps = 4\ndevice = \"cpu\"\n");
  train_until(2, "second");
  fs::rename(folder_ / "first", folder_ / "moved");
  RunOptions resumed = options("second");
  resumed.resume = true;
  const Recipe recipe =
      load_recipe(folder_ / "recipe.toml", {}, CheckpointStore(folder_ / "second").latest());
  EXPECT_EQ(Trainer(recipe, resumed).run().state.step, 4);
}

}  // namespace
}  // namespace parallax::train
