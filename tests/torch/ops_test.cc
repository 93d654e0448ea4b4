// The op library as a C++ program meets it: linked, and called through Torch's dispatcher.
// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <string>
#include <tuple>
#include <vector>

#include "parallax/parallax.h"
#include "torch/ops.h"

namespace parallax {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using ForwardOp = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
    const OptionalTensor&, const OptionalTensor&, std::optional<double>, bool,
    std::optional<int64_t>, bool, bool);

enum class Stats { kReturn, kLeaveOut };

auto call_forward(const std::vector<at::Tensor>& qrkv, Stats stats) {
  static const std::string name = std::string(parallax_torch_ops) + "::attention_forward";
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").typed<ForwardOp>();
  return op.call(qrkv[0], qrkv[1], qrkv[2], qrkv[3], std::nullopt, std::nullopt, std::nullopt,
                 /*causal=*/true, std::nullopt, /*deterministic=*/false,
                 /*return_stats=*/stats == Stats::kReturn);
}

at::Tensor forward_op(const std::vector<at::Tensor>& qrkv) {
  return std::get<0>(call_forward(qrkv, Stats::kReturn));
}

std::vector<at::Tensor> random_inputs(int64_t num_tokens) {
  torch::manual_seed(num_tokens);
  std::vector<at::Tensor> qrkv;
  for (const int64_t num_heads : {4, 4, 2, 2})
    qrkv.push_back(torch::randn({2, num_tokens, num_heads, 16}));
  return qrkv;
}

template <typename View>
View view_of(const at::Tensor& tensor) {
  View view = make_view(tensor.data_ptr<float>(), {1});
  view.rank = static_cast<int>(tensor.dim());
  for (size_t dim = 0; dim < static_cast<size_t>(view.rank); ++dim) {
    view.sizes[dim] = tensor.size(static_cast<int64_t>(dim));
    view.strides[dim] = tensor.stride(static_cast<int64_t>(dim));
  }
  return view;
}

TEST(OpLibrary, ExportsThePublicApi) { EXPECT_FALSE(backends().empty()); }

TEST(OpLibrary, OpEqualsTheFunctionOfTheSameName) {
  const auto qrkv = random_inputs(40);
  const at::Tensor expected = torch::empty_like(qrkv[0]);
  attention_forward({.q = view_of<ConstTensorView>(qrkv[0]),
                     .r = view_of<ConstTensorView>(qrkv[1]),
                     .k = view_of<ConstTensorView>(qrkv[2]),
                     .v = view_of<ConstTensorView>(qrkv[3]),
                     .out = view_of<TensorView>(expected)});
  EXPECT_TRUE(torch::equal(forward_op(qrkv), expected));
}

TEST(OpLibrary, StatisticsThatAreLeftOutAreEmpty) {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf, torch::kDouble}) {
    auto qrkv = random_inputs(40);
    for (at::Tensor& tensor : qrkv) tensor = tensor.to(dtype);
    const auto all = call_forward(qrkv, Stats::kReturn);
    const auto [out, out_softmax, lse, t_mean] = call_forward(qrkv, Stats::kLeaveOut);
    EXPECT_TRUE(torch::equal(out, std::get<0>(all)));
    for (const at::Tensor& tensor : {out_softmax, lse, t_mean})
      EXPECT_EQ(tensor.sizes(), at::IntArrayRef({0}));
    EXPECT_EQ(out_softmax.scalar_type(), dtype);
    EXPECT_EQ(lse.scalar_type(), std::get<2>(all).scalar_type());
    EXPECT_EQ(t_mean.scalar_type(), std::get<3>(all).scalar_type());
  }
}

TEST(OpLibrary, RefusalKeepsTheLibrarysWords) {
  auto qrkv = random_inputs(5);
  qrkv[3] = qrkv[3].to(torch::kBFloat16);
  try {
    forward_op(qrkv);
    FAIL() << "not refused";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("v is bfloat16; it must be float32"),
              std::string::npos)
        << error.what();
  }
}

// Tasks may be run on any of Torch's threads, also when the caller is already one of them.
TEST(OpLibrary, CallFromAParallelRegionGivesTheSameBits) {
  const auto qrkv = random_inputs(40);
  const at::Tensor expected = forward_op(qrkv);
  std::vector<at::Tensor> results(4);
  at::parallel_for(0, 4, 1, [&](int64_t begin, int64_t end) {
    for (int64_t idx = begin; idx < end; ++idx)
      results[static_cast<size_t>(idx)] = forward_op(qrkv);
  });
  for (const at::Tensor& result : results) EXPECT_TRUE(torch::equal(result, expected));
}

}  // namespace
}  // namespace parallax
