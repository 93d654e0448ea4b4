// RMSNorm, rotary embedding and SwiGLU as the model calls them: the CPU's kernels and their
// gradients against Torch's own ops in float64.
// SPDX-License-Identifier: Apache-2.0
#include "nn/row_ops.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/cuda.h>

#include <functional>
#include <vector>

#include "nn/linear.h"
#include "nn/model_testing.h"
#include "nn/rope.h"
#include "row_backends.h"

namespace parallax::nn {
namespace {

using testing::max_difference;
using torch::Tensor;

constexpr double kEps = 1e-6;

/// Rotary tables of N = 5 tokens, one of them far away.
RotaryTables tables(int64_t head_dim) {
  return rotary_tables(torch::tensor({0, 1, 2, 3, 1000}, torch::kInt64), head_dim, 10000.0);
}

using Function = std::function<Tensor(const std::vector<Tensor>&)>;

/// The result and the gradients of sum(result weights) with respect to all inputs.
std::vector<Tensor> with_gradients(const Function& function, std::vector<Tensor> inputs,
                                   const Tensor& weights) {
  for (Tensor& input : inputs) input = input.detach().requires_grad_();
  const Tensor y = function(inputs);
  std::vector<Tensor> results = {y.detach()};
  for (const Tensor& gradient : torch::autograd::grad({y}, inputs, {weights.to(y.dtype())}))
    results.push_back(gradient);
  return results;
}

/// Runs the function in the inputs' dtypes, and again in float64 from the same numbers.
void expect_equals_float64(const Function& function, const std::vector<Tensor>& inputs,
                           const Tensor& weights, double relative) {
  std::vector<Tensor> wide;
  for (const Tensor& input : inputs) wide.push_back(input.to(torch::kFloat64));
  const auto results = with_gradients(function, inputs, weights);
  const auto truth = with_gradients(function, wide, weights.to(torch::kFloat64));
  for (size_t i = 0; i < results.size(); ++i) {
    EXPECT_EQ(results[i].dtype(), inputs[i == 0 ? 0 : i - 1].dtype()) << i;
    EXPECT_LE(max_difference(results[i].to(torch::kFloat64), truth[i]),
              relative * truth[i].abs().max().item<double>())
        << i;
  }
}

struct Precision {
  torch::ScalarType dtype;
  double relative;  // a few roundings of the largest element
};
const Precision kPrecisions[] = {
    {torch::kFloat32, 2e-6}, {torch::kBFloat16, 8e-3}, {torch::kFloat16, 1e-3}};

TEST(RowOps, NormAndRotationEqualTorchInFloat64) {
  torch::manual_seed(1);
  for (const auto& [dtype, relative] : kPrecisions)
    for (const int64_t head_dim : {6, 64, 128})
      for (const bool rotate : {false, true}) {
        const RotaryTables rope = tables(head_dim);
        const auto function = [&](const std::vector<Tensor>& in) {
          return norm_rope(in[0], {.gain = in[1],
                                   .eps = kEps,
                                   .rope = rotate ? &rope : nullptr,
                                   .dtype = in[0].scalar_type()});
        };
        const Tensor x = torch::randn({2, 5, 3, head_dim}).to(dtype);
        const Tensor gain = torch::randn({head_dim}).to(dtype);
        expect_equals_float64(function, {x, gain}, torch::randn(x.sizes()).to(dtype), relative);
      }
}

TEST(RowOps, RotationAloneEqualsTorchInFloat64) {
  torch::manual_seed(2);
  const RotaryTables rope = tables(16);
  for (const auto& [dtype, relative] : kPrecisions) {
    const auto function = [&](const std::vector<Tensor>& in) {
      return norm_rope(in[0], {.rope = &rope, .dtype = in[0].scalar_type()});
    };
    const Tensor x = torch::randn({5, 2, 16}).to(dtype);
    expect_equals_float64(function, {x}, torch::randn(x.sizes()).to(dtype), relative);
  }
}

TEST(RowOps, SwigluEqualsTorchInFloat64) {
  torch::manual_seed(3);
  const auto function = [](const std::vector<Tensor>& in) { return swiglu(in[0], in[1]); };
  for (const auto& [dtype, relative] : kPrecisions) {
    const Tensor gate = (4 * torch::randn({3, 5, 70})).to(dtype);
    const Tensor up = torch::randn({3, 5, 70}).to(dtype);
    expect_equals_float64(function, {gate, up}, torch::randn(gate.sizes()).to(dtype), relative);
  }
}

/// Both norms' kinds of views: slices of a wider tensor, transposed heads, an expanded gradient,
/// and a last dimension that is not contiguous.
TEST(RowOps, StridedInputsGiveTheBitsOfContiguousOnes) {
  torch::manual_seed(4);
  const RotaryTables rope = tables(8);
  const Tensor gain = torch::randn(8);
  const Tensor dense = torch::randn({2, 5, 3, 8});
  const auto wide = torch::randn({2, 5, 3, 20});
  const Tensor slice = wide.slice(-1, 7, 15), heads_first = torch::randn({2, 3, 5, 8});
  const auto swapped = torch::randn({2, 5, 8, 3});
  const auto function = [&](const std::vector<Tensor>& in) {
    return norm_rope(in[0], {.gain = in[1], .eps = kEps, .rope = &rope});
  };
  const auto glu = [](const std::vector<Tensor>& in) { return swiglu(in[0], in[1]); };
  for (const Tensor& x : {slice, heads_first.transpose(1, 2), swapped.transpose(2, 3)})
    for (const Tensor& weights : {dense, slice, torch::ones({}).expand({2, 5, 3, 8})}) {
      const auto expected = with_gradients(function, {x.contiguous(), gain}, weights.contiguous());
      const auto results = with_gradients(function, {x, gain}, weights);
      for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(torch::equal(results[i], expected[i])) << i;
      const auto glu_expected = with_gradients(glu, {x.contiguous(), dense}, weights.contiguous());
      const auto glu_results = with_gradients(glu, {x, dense}, weights);
      for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(torch::equal(glu_results[i], glu_expected[i]));
    }
}

/// The differentiable functions on CUDA tensors, with the library's kernels.
TEST(RowOps, CudaTensorsGiveTheValuesOfTheCpu) {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "this Torch has no CUDA device";
  const Support support = supports_row_ops({DeviceType::kCuda, 0});
  if (!support.ok) GTEST_SKIP() << support.reason;
  torch::manual_seed(7);
  for (const auto& [dtype, relative] : kPrecisions) {
    const Tensor x = torch::randn({2, 5, 3, 64}).to(dtype), gain = torch::randn({64}).to(dtype);
    const Tensor weights = torch::randn(x.sizes()).to(dtype);
    const auto run = [&](torch::Device device) {
      RotaryTables rope = tables(64);
      rope = {.cos = rope.cos.to(device), .sin = rope.sin.to(device)};
      const auto function = [&](const std::vector<Tensor>& in) {
        const Tensor turned = norm_rope(
            in[0], {.gain = in[1], .eps = kEps, .rope = &rope, .dtype = in[0].scalar_type()});
        return swiglu(turned, in[0]);
      };
      return with_gradients(function, {x.to(device), gain.to(device)}, weights.to(device));
    };
    const auto results = run(torch::kCUDA), expected = run(torch::kCPU);
    for (size_t i = 0; i < results.size(); ++i) {
      EXPECT_TRUE(results[i].is_cuda());
      // Each of the two may round a result between the ops the other way.
      EXPECT_LE(
          max_difference(results[i].cpu().to(torch::kFloat64), expected[i].to(torch::kFloat64)),
          3 * relative * expected[i].abs().max().item<double>())
          << i;
    }
  }
}

TEST(RowOps, TheResultIsRoundedOnceToTheWantedDType) {
  torch::manual_seed(5);
  const RotaryTables rope = tables(32);
  const Tensor x = torch::randn({5, 2, 32}), gain = torch::randn(32);
  const auto run = [&](torch::ScalarType dtype) {
    return norm_rope(x, {.gain = gain, .eps = kEps, .rope = &rope, .dtype = dtype});
  };
  for (const auto dtype : {torch::kBFloat16, torch::kFloat16})
    EXPECT_TRUE(torch::equal(run(dtype), run(torch::kFloat32).to(dtype)));
}

TEST(RowOps, WithoutGainAndTablesOnlyTheDTypeChanges) {
  const Tensor x = torch::randn({5, 2, 32});
  EXPECT_TRUE(torch::equal(norm_rope(x, {.dtype = torch::kBFloat16}), x.to(torch::kBFloat16)));
}

TEST(RowOps, TheNumberOfTorchsThreadsChangesNoBit) {
  torch::manual_seed(6);
  const RotaryTables rope = rotary_tables(torch::arange(300), 64, 10000.0);
  const Tensor x = torch::randn({4, 300, 3, 64}), gain = torch::randn(64);
  const Tensor weights = torch::randn(x.sizes());
  const auto function = [&](const std::vector<Tensor>& in) {
    return norm_rope(in[0], {.gain = in[1], .eps = kEps, .rope = &rope});
  };
  const int before = at::get_num_threads();
  std::vector<std::vector<Tensor>> results;
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    results.push_back(with_gradients(function, {x, gain}, weights));
  }
  at::set_num_threads(before);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(torch::equal(results[0][i], results[1][i])) << i;
    EXPECT_TRUE(torch::equal(results[0][i], results[2][i])) << i;
  }
}

/// A float32 model takes the kernels, a float64 one Torch's ops: forward and all gradients agree,
/// also under autocast, where norms hand bfloat16 to the linear layers.
TEST(RowOps, AModelsGradientsEqualThoseInFloat64) {
  for (const char* variant : {"qwen3", "plain"})
    for (const bool autocast : {false, true}) {
      ModelConfig config = testing::small_config("parallax");
      if (variant == std::string("plain")) config.qk_norm = config.r_norm = config.r_rope = false;
      Decoder narrow = testing::make_model(config, torch::kFloat32);
      Decoder wide = testing::make_model(config, torch::kFloat64);
      const Tensor tokens = testing::random_tokens(config, {2, 9});
      const Tensor weights = torch::randn({2, 9, config.hidden_size}, torch::kFloat64);
      const auto gradients = [&](Decoder& model) {
        const Tensor hidden = model->hidden(tokens);
        EXPECT_EQ(hidden.dtype(), model->head_weight().dtype());
        return torch::autograd::grad({(hidden * weights).sum()}, model->parameters());
      };
      const auto expected = gradients(wide);
      at::autocast::set_autocast_enabled(torch::kCPU, autocast);
      const auto results = gradients(narrow);
      at::autocast::clear_cache();
      at::autocast::set_autocast_enabled(torch::kCPU, false);
      const double relative = autocast ? 0.1 : 1e-4;
      for (size_t i = 0; i < results.size(); ++i)
        EXPECT_LE((results[i] - expected[i]).norm().item<double>(),
                  relative * expected[i].norm().item<double>())
            << variant << ' ' << autocast << ' ' << wide->named_parameters().keys()[i];
    }
}

}  // namespace
}  // namespace parallax::nn
