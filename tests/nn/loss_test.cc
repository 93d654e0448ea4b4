// The chunked cross-entropy against Torch's own on full logits.
// SPDX-License-Identifier: Apache-2.0
#include "nn/loss.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <torch/autograd.h>
#include <torch/nn/functional/loss.h>

#include "parallax/error.h"
#include "support/temp_folder.h"

namespace parallax::nn {
namespace {

using torch::Tensor;
namespace F = torch::nn::functional;

struct Result {
  Tensor loss, d_hidden, d_weight;
};

struct Inputs {
  Tensor hidden, weight, targets;

  explicit Inputs(torch::ScalarType dtype) {
    torch::manual_seed(3);
    hidden = torch::randn({50, 16}, dtype).requires_grad_();
    weight = torch::randn({37, 16}, dtype).requires_grad_();
    targets = torch::randint(37, {50}, torch::kInt64);
    targets.slice(0, 10, 15).fill_(-100);
  }
  Result gradients(const Tensor& loss) const {
    const auto grads = torch::autograd::grad({loss * 0.25}, {hidden, weight});
    return {loss.detach(), grads[0], grads[1]};
  }
  Result full() const {
    const auto options = F::CrossEntropyFuncOptions().reduction(torch::kSum);
    return gradients(F::cross_entropy(torch::linear(hidden, weight), targets, options));
  }
  Result chunked(int64_t chunk_tokens) const {
    const auto loss =
        chunked_cross_entropy(hidden, weight, targets, {.chunk_tokens = chunk_tokens});
    EXPECT_EQ(loss.count.item<int64_t>(), 45);
    return gradients(loss.sum);
  }
};

void expect_near(const Tensor& actual, const Tensor& expected, double tolerance) {
  EXPECT_EQ(actual.scalar_type(), expected.scalar_type());
  const double scale = expected.abs().max().item<double>();
  EXPECT_LE((actual - expected).abs().max().item<double>(), tolerance * scale);
}

class ChunkedCrossEntropy : public ::testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Chunks, ChunkedCrossEntropy, ::testing::Values(0, 1, 7, 10, 50, 99),
                         ::testing::PrintToStringParamName());

TEST_P(ChunkedCrossEntropy, EqualsTorchInFloat64) {
  const Inputs inputs(torch::kFloat64);
  const Result expected = inputs.full(), actual = inputs.chunked(GetParam());
  expect_near(actual.loss, expected.loss, 1e-14);
  expect_near(actual.d_hidden, expected.d_hidden, 1e-14);
  expect_near(actual.d_weight, expected.d_weight, 1e-14);
}

TEST_P(ChunkedCrossEntropy, EqualsTorchInFloat32) {
  const Inputs inputs(torch::kFloat32);
  const Result expected = inputs.full(), actual = inputs.chunked(GetParam());
  expect_near(actual.loss, expected.loss, 1e-6);
  expect_near(actual.d_hidden, expected.d_hidden, 1e-6);
  expect_near(actual.d_weight, expected.d_weight, 1e-6);
}

TEST_P(ChunkedCrossEntropy, UnderAutocastIsAsAccurateAsTorch) {
  const Inputs inputs(torch::kFloat32);
  const Result exact = inputs.full();
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const Result torch_own = inputs.full(), actual = inputs.chunked(GetParam());
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  const auto error = [](const Tensor& value, const Tensor& reference) {
    return (value - reference).square().mean().sqrt().item<double>();
  };
  EXPECT_EQ(actual.d_weight.scalar_type(), torch::kFloat32);
  EXPECT_LE(error(actual.d_hidden, exact.d_hidden), 2 * error(torch_own.d_hidden, exact.d_hidden));
  EXPECT_LE(error(actual.d_weight, exact.d_weight), 2 * error(torch_own.d_weight, exact.d_weight));
  EXPECT_LE(std::abs((actual.loss - exact.loss).item<double>()), 4e-3 * exact.loss.item<double>());
}

TEST(CrossEntropy, AddsUpInATiedWeight) {
  // The weight is used twice: as a table of hidden states and as the head.
  const Inputs inputs(torch::kFloat64);
  const Tensor tokens = torch::randint(37, {50}, torch::kInt64);
  const auto hidden = [&] { return torch::embedding(inputs.weight, tokens); };
  const auto loss = chunked_cross_entropy(hidden(), inputs.weight, inputs.targets).sum;
  const auto full = F::cross_entropy(torch::linear(hidden(), inputs.weight), inputs.targets,
                                     F::CrossEntropyFuncOptions().reduction(torch::kSum));
  expect_near(torch::autograd::grad({loss}, {inputs.weight})[0],
              torch::autograd::grad({full}, {inputs.weight})[0], 1e-13);
}

TEST(CrossEntropy, AllTargetsIgnoredGivesZero) {
  const Inputs inputs(torch::kFloat32);
  const auto loss =
      chunked_cross_entropy(inputs.hidden, inputs.weight, torch::full({50}, -100, torch::kInt64));
  EXPECT_EQ(loss.count.item<int64_t>(), 0);
  const Result result = inputs.gradients(loss.sum);
  EXPECT_EQ(result.loss.item<float>(), 0);
  EXPECT_EQ(result.d_weight.abs().max().item<float>(), 0);
}

TEST(CrossEntropy, NeverHoldsTheFullLogits) {
  constexpr int64_t kTokens = 2000, kVocabSize = 152'000;
  const auto peak_bytes = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss * 1024;
  };
  const Tensor hidden = torch::randn({kTokens, 4}).requires_grad_();
  const Tensor weight = torch::randn({kVocabSize, 4}).requires_grad_();
  const Tensor targets = torch::randint(kVocabSize, {kTokens}, torch::kInt64);
  const auto before = peak_bytes();
  chunked_cross_entropy(hidden, weight, targets).sum.backward();
  EXPECT_LT(peak_bytes() - before, kTokens * kVocabSize * 4 / 2);
}

TEST(CrossEntropy, WrongInputsAreNamed) {
  const Inputs inputs(torch::kFloat32);
  Tensor targets = inputs.targets.clone();
  targets[20] = 37;
  const auto call = [&](const Tensor& hidden, const Tensor& wrong_targets) {
    return [&inputs, hidden, wrong_targets] {
      chunked_cross_entropy(hidden, inputs.weight, wrong_targets);
    };
  };
  test::expect_error(call(inputs.hidden, targets), {"target 37 of token 20", "0 to 36"});
  test::expect_error(call(inputs.hidden, targets.slice(0, 1)), {"targets must be int64 [50]"});
  test::expect_error(call(inputs.hidden, targets.to(torch::kInt32)), {"Int"});
  test::expect_error(call(inputs.hidden.slice(1, 1), inputs.targets), {"[50, 15]", "[37, 16]"});
}

}  // namespace
}  // namespace parallax::nn
