// The device of a run; runs on a GPU are skipped, and say so, where there is none.
// SPDX-License-Identifier: Apache-2.0
#include "train/device.h"

#include <ATen/Context.h>
#include <torch/cuda.h>

#include "nn/attention_op.h"
#include "train/trainer_testing.h"

namespace parallax::train {
namespace {

TEST(PeakFlops, AreTheMakersOfTheFirstRowThatFits) {
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3", torch::kBFloat16), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3", torch::kFloat32), 67e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 PCIe", torch::kBFloat16), 756e12);
  EXPECT_EQ(peak_flops("NVIDIA L40S", torch::kBFloat16), 362e12);
  EXPECT_EQ(peak_flops("NVIDIA L40", torch::kBFloat16), 181e12);
  EXPECT_EQ(peak_flops("NVIDIA L4", torch::kBFloat16), 121e12);
  EXPECT_EQ(peak_flops("NVIDIA GH200 480GB", torch::kBFloat16), 989e12);
  EXPECT_EQ(peak_flops("Some Accelerator", torch::kBFloat16), std::nullopt);
  EXPECT_EQ(peak_flops("", torch::kBFloat16), std::nullopt);
}

TEST(ChooseDevice, NamesWhatIsMissing) {
  EXPECT_TRUE(choose_device("cpu").is_cpu());
  if (torch::cuda::is_available()) {
    const auto count = static_cast<int>(torch::cuda::device_count());
    const std::string message = message_of([&] { choose_device("cuda", count); });
    EXPECT_NE(message.find("process " + std::to_string(count) + " of this machine has no GPU"),
              std::string::npos)
        << message;
  } else {
    const std::string message = message_of([] { choose_device("cuda"); });
    EXPECT_EQ(message.find("train.device is cuda, and torch "), 0U) << message;
    EXPECT_NE(message.find("one of auto, cpu, cuda"), std::string::npos) << message;
  }
}

TEST_F(TrainerTest, DeterminismFollowsTheRecipe) {
  train_until(1, "on", {"train.deterministic=true"});
  EXPECT_TRUE(at::globalContext().deterministicAlgorithms());
  train_until(1, "off");
  EXPECT_FALSE(at::globalContext().deterministicAlgorithms());
}

TEST_F(TrainerTest, UtilizationIsTheShareOfThePeakThatTheModelsProductsAre) {
  Trainer trainer(recipe({"logging.peak_tflops=0.5", "train.steps=3"}), options("run"));
  const double flops_per_token = 3 * trainer.model()->flops(16) / 16;
  const RunSummary summary = trainer.run();
  const auto lines = metrics("run", "train");
  ASSERT_EQ(lines.size(), 3U);
  for (const auto& line : lines)
    EXPECT_NEAR(line.at("model_flops_utilization").get<double>(),
                line.at("tokens_per_second").get<double>() * flops_per_token / 0.5e12,
                1e-9 * line.at("model_flops_utilization").get<double>());
  EXPECT_EQ(metrics("run", "end").at(0).at("model_flops_utilization"),
            summary.speed.at("model_flops_utilization"));
  train("unknown");
  EXPECT_FALSE(metrics("unknown", "train").at(0).contains("model_flops_utilization"));
}

class CudaTrainerTest : public TrainerTest {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device that torch can use";
    TrainerTest::SetUp();
  }
  void TearDown() override {
    if (!folder_.empty()) TrainerTest::TearDown();
  }

  static std::vector<std::string> on_cuda(std::vector<std::string> settings = {}) {
    settings.insert(settings.end(), {"train.device=cuda", "model.mixers=softmax"});
    return settings;
  }
};

TEST_F(CudaTrainerTest, LossesAreThoseOfTheCpu) {
  for (const std::string optimizer : {"muon", "adamw"}) {
    const std::string setting = "optimizer.name=" + optimizer;
    train(optimizer + "_cuda", on_cuda({setting, "train.micro_batch_size=2"}));
    train(optimizer + "_cpu", {setting, "model.mixers=softmax"});
    const auto given = losses(optimizer + "_cuda"), expected = losses(optimizer + "_cpu");
    ASSERT_EQ(given.size(), expected.size());
    for (size_t i = 0; i < given.size(); ++i)
      EXPECT_NEAR(given[i], expected[i], 2e-3) << optimizer << ", step " << i + 1;
  }
  EXPECT_EQ(metrics("muon_cuda", "start").at(0).at("device"), "cuda:0");
}

TEST_F(CudaTrainerTest, DeterministicRunsResumeBitForBit) {
  for (const std::string compute : {"float32", "bfloat16"}) {
    const auto settings =
        on_cuda({"train.compute=" + compute, "train.deterministic=true", "train.micro_batch_size=2",
                 "optimizer.newton_schulz_dtype=bfloat16"});
    train(compute, settings);
    train_until(10, compute + "_parts", settings);
    resume(compute + "_parts", settings);
    for (const char* name :
         {"model.safetensors", "training/optimizer.safetensors", "training/random.safetensors"})
      EXPECT_TRUE(file(compute + "/latest/" + name) == file(compute + "_parts/latest/" + name))
          << compute << " " << name;
    EXPECT_EQ(losses(compute), losses(compute + "_parts"));
  }
}

TEST_F(CudaTrainerTest, ARunGoesOnOnTheOtherDevice) {
  train_until(10, "run", on_cuda());
  EXPECT_EQ(resume("run", {"model.mixers=softmax", "train.device=cpu"}).state.step, 20);
}

TEST_F(CudaTrainerTest, ParallaxTrains) {
  if (!nn::has_attention_on(torch::kCUDA))
    GTEST_SKIP() << "built without the CUDA backends (PLX_CUDA=ON)";
  train("cuda", {"train.device=cuda", "train.deterministic=true"});
  train("cpu");
  const auto given = losses("cuda"), expected = losses("cpu");
  ASSERT_EQ(given.size(), expected.size());
  for (size_t i = 0; i < given.size(); ++i) EXPECT_NEAR(given[i], expected[i], 2e-3) << i;
}

TEST_F(CudaTrainerTest, MemoryThatRunsOutIsSaidAndTheStateSaved) {
  Trainer trainer(recipe(on_cuda()), options("run"));
  int num_calls = 0;
  trainer.model()
      ->named_parameters()
      .find("model.norm.weight")
      ->register_hook([&](const torch::Tensor& gradient) {
        // More than any device has.
        return ++num_calls < 3 ? gradient : gradient.new_empty({int64_t{1} << 42}).narrow(0, 0, 32);
      });
  const std::string message = message_of([&] { trainer.run(); });
  EXPECT_EQ(message.find("step 3: out of memory on cuda:0"), 0U) << message;
  EXPECT_NE(message.find("train.micro_batch_size is 4"), std::string::npos) << message;
  EXPECT_TRUE(fs::exists(folder_ / "run/step_00000002")) << message;
}

}  // namespace
}  // namespace parallax::train
