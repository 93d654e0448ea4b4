// The differentiable attention function: which second derivatives and gradients it takes.
// SPDX-License-Identifier: Apache-2.0
#include "nn/attention_op.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>

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
