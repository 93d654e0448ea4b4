// The differentiable attention function: which second derivatives and gradients it takes, and what
// it computes for them.
// SPDX-License-Identifier: Apache-2.0
#include "nn/attention_op.h"

#include <ATen/record_function.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>

#include <memory>
#include <string_view>
#include <vector>

#include "parallax/error.h"

namespace parallax::nn {
namespace {

using torch::Tensor;

struct Inputs {
  std::vector<Tensor> qrkv;

  Inputs() {
    torch::manual_seed(3);
    for (const int64_t num_heads : {4, 4, 2, 2})
      qrkv.push_back(torch::randn({2, 9, num_heads, 8}).requires_grad_());
  }
  Tensor out() const { return attention(qrkv[0], qrkv[1], qrkv[2], qrkv[3], {}); }
};

// Per call of the forward op: the elements of out_softmax, lse and t_mean together.
thread_local std::vector<int64_t> statistics_of_calls;

void record_statistics(const at::RecordFunction& function, at::ObserverContext*) {
  if (std::string_view(function.name()) != "parallax::attention_forward") return;
  int64_t count = 0;
  for (size_t idx = 1; idx < 4; ++idx) count += function.outputs().at(idx).toTensor().numel();
  statistics_of_calls.push_back(count);
}

/// What statistics_of_calls gets while run() runs.
template <typename Run>
std::vector<int64_t> recorded_statistics(const Run& run) {
  statistics_of_calls.clear();
  const auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(
          [](const at::RecordFunction&) { return std::unique_ptr<at::ObserverContext>(); },
          record_statistics)
          .needsOutputs(true)
          .scopes({at::RecordScope::FUNCTION}));
  run();
  at::removeCallback(handle);
  return statistics_of_calls;
}

TEST(AttentionOp, StatisticsAreComputedOnlyForABackwardPass) {
  Inputs inputs;
  const int64_t all = 2 * 9 * 4 * (8 + 1 + 1);
  Tensor recorded, without_grad_mode, without_leaves;
  EXPECT_EQ(recorded_statistics([&] { recorded = inputs.out(); }), std::vector{all});
  EXPECT_TRUE(recorded.requires_grad());
  {
    const torch::NoGradGuard guard;
    EXPECT_EQ(recorded_statistics([&] { without_grad_mode = inputs.out(); }),
              std::vector<int64_t>{0});
  }
  for (Tensor& tensor : inputs.qrkv) tensor = tensor.detach();
  EXPECT_EQ(recorded_statistics([&] { without_leaves = inputs.out(); }), std::vector<int64_t>{0});
  EXPECT_TRUE(torch::equal(without_grad_mode, recorded));
  EXPECT_TRUE(torch::equal(without_leaves, recorded));
  for (Tensor& tensor : inputs.qrkv) {
    tensor.requires_grad_();
    EXPECT_EQ(recorded_statistics([&] { inputs.out().sum().backward(); }), std::vector{all});
    EXPECT_TRUE(tensor.grad().defined());
    tensor = tensor.detach();
  }
}

TEST(AttentionOp, DoubleBackwardIsRefused) {
  const Inputs inputs;
  try {
    torch::autograd::grad({inputs.out().sum()}, inputs.qrkv, {}, /*retain_graph=*/true,
                          /*create_graph=*/true);
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "the gradient of attention was asked for with create_graph=true; double backward "
                 "is not supported, use create_graph=false");
  }
  EXPECT_EQ(torch::autograd::grad({inputs.out().sum()}, inputs.qrkv).size(), 4u);
}

TEST(AttentionOp, TheGradientMayHaveAnyStrides) {
  const Inputs inputs;
  const Tensor heads_first = torch::randn({2, 4, 9, 8}).transpose(1, 2);
  const Tensor dim_outside = torch::randn({8, 2, 9, 4}).permute({1, 2, 3, 0});
  const Tensor repeated = torch::randn({1}).expand({2, 9, 4, 8});
  for (const Tensor& d_out : {heads_first, dim_outside, repeated}) {
    const auto strided = torch::autograd::grad({inputs.out()}, inputs.qrkv, {d_out});
    const auto dense = torch::autograd::grad({inputs.out()}, inputs.qrkv, {d_out.contiguous()});
    for (size_t idx = 0; idx < 4; ++idx) EXPECT_TRUE(torch::equal(strided[idx], dense[idx]));
  }
}

TEST(AttentionOp, AnEmptySequenceHasEmptyGradients) {
  std::vector<Tensor> qrkv;
  for (const int64_t num_heads : {4, 4, 2, 2})
    qrkv.push_back(torch::randn({2, 0, num_heads, 8}).requires_grad_());
  const Tensor out = attention(qrkv[0], qrkv[1], qrkv[2], qrkv[3], {});
  const auto gradients = torch::autograd::grad({out}, qrkv, {torch::ones({1}).expand_as(out)});
  for (size_t idx = 0; idx < 4; ++idx) EXPECT_EQ(gradients[idx].sizes(), qrkv[idx].sizes());
}

}  // namespace
}  // namespace parallax::nn
