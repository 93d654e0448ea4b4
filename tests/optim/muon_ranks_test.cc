// Muon on several ranks, here threads: the bits of one rank, the work shared out.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <map>
#include <memory>
#include <thread>

#include "optim/muon.h"

namespace parallax::optim {
namespace {

constexpr int kNumRanks = 3;

/// What the threads of one test exchange tensors through.
struct Exchange {
  std::barrier<> all{kNumRanks};
  torch::Tensor tensor;
  std::map<int, int> num_from;  // broadcasts by root
};

class ThreadRank : public Ranks {
 public:
  ThreadRank(std::shared_ptr<Exchange> exchange, int rank)
      : exchange_(std::move(exchange)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return kNumRanks; }
  Wait start_broadcast(torch::Tensor tensor, int root) override {
    if (rank_ == root) {
      exchange_->tensor = tensor;
      ++exchange_->num_from[root];
    }
    exchange_->all.arrive_and_wait();
    if (rank_ != root) tensor.copy_(exchange_->tensor);
    exchange_->all.arrive_and_wait();
    return [] {};
  }

 private:
  std::shared_ptr<Exchange> exchange_;
  int rank_;
};

/// Weights after three steps of one rank.
std::vector<torch::Tensor> train(const std::shared_ptr<Ranks>& ranks, const MuonOptions& options) {
  std::vector<MuonParameter> parameters;
  std::vector<torch::Tensor> weights;
  const std::vector<std::vector<int64_t>> shapes = {{24, 8}, {8, 24}, {8, 8}, {16, 8}, {6, 8}};
  for (size_t i = 0; i < shapes.size(); ++i) {
    auto generator = torch::make_generator<torch::CPUGeneratorImpl>(i);
    weights.push_back(torch::randn(shapes[i], generator));
    parameters.push_back({.name = "w" + std::to_string(i),
                          .tensor = weights.back(),
                          .lr = 0.1,
                          .weight_decay = 0.1});
  }
  parameters[3].row_splits = {8, 4, 4};
  Muon muon(parameters, options, ranks);
  for (uint64_t step = 0; step < 3; ++step) {
    for (size_t i = 0; i < weights.size(); ++i) {
      auto generator = torch::make_generator<torch::CPUGeneratorImpl>(100 * (step + 1) + i);
      weights[i].mutable_grad() = torch::randn(shapes[i], generator);
    }
    muon.step({.lr = 0.5});
  }
  return weights;
}

TEST(MuonRanks, HaveTheBitsOfOneRankAndEachDoesAShare) {
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    const MuonOptions options{.newton_schulz = {.dtype = dtype}};
    const auto expected = train(std::make_shared<Ranks>(), options);
    const auto exchange = std::make_shared<Exchange>();
    std::vector<std::vector<torch::Tensor>> given(kNumRanks);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < kNumRanks; ++rank)
      threads.emplace_back([&, rank] {
        given[static_cast<size_t>(rank)] =
            train(std::make_shared<ThreadRank>(exchange, rank), options);
      });
    for (auto& thread : threads) thread.join();
    for (const auto& weights : given)
      for (size_t i = 0; i < expected.size(); ++i)
        EXPECT_TRUE(torch::equal(weights[i], expected[i])) << dtype << " " << i;
    int total = 0;
    for (const auto& [root, count] : exchange->num_from) total += count;
    EXPECT_EQ(exchange->num_from.size(), static_cast<size_t>(kNumRanks));
    EXPECT_EQ(total, 3 * 5);
  }
}

TEST(ShareOut, NoRankHasMoreThanTheAverageAndOneJob) {
  std::vector<double> costs;
  for (int layer = 0; layer < 28; ++layer)
    for (const double cost : {4.0, 1.0, 1.0, 2.0, 7.0, 7.0, 7.0}) costs.push_back(cost);
  for (const int num_ranks : {1, 2, 3, 8}) {
    const auto owners = share_out(costs, num_ranks);
    std::vector<double> loads(static_cast<size_t>(num_ranks));
    double sum = 0;
    for (size_t i = 0; i < costs.size(); ++i) {
      loads.at(static_cast<size_t>(owners[i])) += costs[i];
      sum += costs[i];
    }
    EXPECT_LE(*std::max_element(loads.begin(), loads.end()), sum / num_ranks + 1) << num_ranks;
  }
  EXPECT_EQ(share_out({1, 5, 5, 1}, 2), (std::vector<int>{0, 0, 1, 1}));
}

}  // namespace
}  // namespace parallax::optim
