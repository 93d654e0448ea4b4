// Buckets of gradients: when their sums start, in which order, and what comes out.
// SPDX-License-Identifier: Apache-2.0
#include "train/gradient_buckets.h"

#include <gtest/gtest.h>

#include <vector>

namespace parallax::train {
namespace {

/// The first of two ranks; the other one has the same gradients, and each sum is finished by its
/// wait.
class Mirror : public optim::Ranks {
 public:
  int size() const override { return 2; }
  Wait start_sum(torch::Tensor tensor) override {
    started.push_back(tensor.numel());
    started_after.push_back(num_backward_calls);
    return [tensor]() mutable { tensor.mul_(2); };
  }

  std::vector<int64_t> started, started_after;
  int64_t num_backward_calls = 0;
};

class GradientBucketsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    torch::manual_seed(1);
    for (const int64_t size : {8, 8, 8})
      weights.push_back(torch::randn({size, size}).requires_grad_());
    // Counts how many products have been differentiated.
    for (const auto& weight : weights)
      weight.register_hook([this](const torch::Tensor&) { ++ranks->num_backward_calls; });
  }

  /// The first weight's gradient comes last.
  torch::Tensor loss() const {
    torch::Tensor x = torch::ones({1, 8});
    for (const auto& weight : weights) x = torch::mm(x, weight).tanh();
    return x.sum();
  }

  std::vector<torch::Tensor> expected() const { return torch::autograd::grad({loss()}, weights); }

  std::shared_ptr<Mirror> ranks = std::make_shared<Mirror>();
  std::vector<torch::Tensor> weights;
};

constexpr int64_t kOneMatrix = 8 * 8 * 4;

TEST_F(GradientBucketsTest, SumsStartWhileBackwardRuns) {
  GradientBuckets buckets(weights, ranks, kOneMatrix);
  ASSERT_EQ(buckets.num_buckets(), 3);
  buckets.reset();
  buckets.sum_with_next_backward();
  loss().backward();
  EXPECT_EQ(ranks->started_after, (std::vector<int64_t>{1, 2, 3}));
  buckets.finish();
  EXPECT_EQ(ranks->started.size(), 3U);
}

TEST_F(GradientBucketsTest, GradientsAreTheSumsOverMicroBatchesAndRanks) {
  const auto single = expected();
  for (const int64_t bucket_bytes : {int64_t{1}, 2 * kOneMatrix, GradientBuckets::kBucketBytes}) {
    GradientBuckets buckets(weights, ranks, bucket_bytes);
    for (int repeat = 0; repeat < 2; ++repeat) {
      buckets.reset();
      loss().backward();
      buckets.sum_with_next_backward();
      loss().backward();
      buckets.finish();
      for (size_t i = 0; i < weights.size(); ++i)
        EXPECT_TRUE(torch::allclose(weights[i].grad(), 4 * single[i])) << bucket_bytes << " " << i;
    }
  }
}

TEST_F(GradientBucketsTest, BucketsAreFullInReverseOrder) {
  GradientBuckets buckets(weights, ranks, 2 * kOneMatrix);
  buckets.reset();
  buckets.sum_with_next_backward();
  loss().backward();
  buckets.finish();
  EXPECT_EQ(ranks->started, (std::vector<int64_t>{2 * 64, 64}));
  EXPECT_EQ(ranks->started_after[0], 2);
}

TEST_F(GradientBucketsTest, WhatBackwardDoesNotReachIsSummedToo) {
  GradientBuckets buckets(weights, ranks, kOneMatrix);
  buckets.reset();
  buckets.sum_with_next_backward();
  weights[1].sum().backward();
  EXPECT_TRUE(ranks->started.empty()) << "the order must be the same on every rank";
  buckets.finish();
  EXPECT_EQ(ranks->started.size(), 3U);
  EXPECT_TRUE(torch::equal(weights[1].grad(), torch::full({8, 8}, 2.0)));
  EXPECT_TRUE(torch::equal(weights[0].grad(), torch::zeros({8, 8})));
}

TEST_F(GradientBucketsTest, OneRankHasNoneAndUnusedGradientsStayUndefined) {
  GradientBuckets buckets(weights, std::make_shared<optim::Ranks>());
  EXPECT_EQ(buckets.num_buckets(), 0);
  buckets.reset();
  buckets.sum_with_next_backward();
  weights[1].sum().backward();
  buckets.finish();
  EXPECT_TRUE(weights[1].grad().defined());
  EXPECT_FALSE(weights[0].grad().defined());
  buckets.reset();
  EXPECT_FALSE(weights[1].grad().defined());
}

}  // namespace
}  // namespace parallax::train
