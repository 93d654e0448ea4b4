// RMSNorm, rotary embedding and SwiGLU, forward and backward, on every instruction set here,
// against plain loops in float64 within the derived tolerance (docs/testing.md).
// SPDX-License-Identifier: Apache-2.0
#include "cpu/row_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "parallax/parallel.h"
#include "support/attention_case.h"
#include "support/cpu_backends.h"
#include "support/host_tensor.h"
#include "support/tolerance.h"

namespace parallax::testing {
namespace {

using Sizes = std::vector<int64_t>;
using Values = std::vector<double>;

constexpr double kEps = 1e-6;

std::vector<const cpu::Kernels*> all_kernels() {
  std::vector<const cpu::Kernels*> kernels;
  for (const cpu::InstructionSet& set : instruction_sets()) kernels.push_back(set.floats);
  return kernels;
}

int64_t count_of(const Sizes& sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return count;
}

struct Case {
  Sizes sizes;  // [.., D] or, rotated, [.., N, H, D]
  bool norm = true, rotate = false;
  DType dtype = DType::kFloat32;      // of x and dx
  DType out_dtype = DType::kFloat32;  // of y and dy
  Layout layout = Layout::kContiguous;
  double scale = 1.0;

  int64_t dim() const { return sizes.back(); }
  int64_t tokens() const { return sizes[sizes.size() - 3]; }
  std::string text() const {
    std::string text;
    for (const int64_t size : sizes) text += std::to_string(size) + " ";
    return text + (norm ? "norm " : "") + (rotate ? "rotate " : "") + std::string(name(dtype)) +
           " to " + std::string(name(out_dtype)) + " layout " +
           std::to_string(static_cast<int>(layout)) + " scale " + std::to_string(scale);
  }
};

struct NormRopeInputs {
  HostTensor x, dy, gain, cos, sin;
};

NormRopeInputs make_inputs(const Case& test_case, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto fill = [&](DType dtype, const Sizes& sizes, Layout layout, double scale) {
    Values values = normal_values(count_of(sizes), random);
    for (double& value : values) value *= scale;
    return HostTensor::of(dtype, sizes, values, layout);
  };
  NormRopeInputs inputs;
  inputs.x = fill(test_case.dtype, test_case.sizes, test_case.layout, test_case.scale);
  inputs.dy = fill(test_case.out_dtype, test_case.sizes, test_case.layout, 1.0);
  if (test_case.norm)
    inputs.gain = fill(test_case.dtype, {test_case.dim()}, Layout::kContiguous, 1.0);
  if (test_case.rotate) {
    Values cos, sin;
    for (const double angle : normal_values(test_case.tokens() * test_case.dim() / 2, random)) {
      cos.push_back(std::cos(3 * angle));
      sin.push_back(std::sin(3 * angle));
    }
    const Sizes sizes = {test_case.tokens(), test_case.dim() / 2};
    inputs.cos = HostTensor::of(DType::kFloat32, sizes, cos);
    inputs.sin = HostTensor::of(DType::kFloat32, sizes, sin, Layout::kPadded);
  }
  return inputs;
}

struct NormRopeValues {
  Values y, dx, d_gain;
  double dx_term = 0.0;           // the largest |gain g / rms(x)|
  std::vector<double> squares{};  // of the terms of d_gain, summed
};

/// The formulas in T, one operation after the other.
template <typename T>
NormRopeValues plain_norm_rope(const Case& test_case, const NormRopeInputs& inputs) {
  const auto dim = static_cast<size_t>(test_case.dim()), half = dim / 2;
  const auto heads = test_case.rotate ? static_cast<size_t>(test_case.sizes.end()[-2]) : 1;
  const Values x = inputs.x.values(), dy = inputs.dy.values();
  const Values gain = test_case.norm ? inputs.gain.values() : Values(dim, 1.0);
  const Values cos = inputs.cos.defined() ? inputs.cos.values() : Values();
  const Values sin = inputs.sin.defined() ? inputs.sin.values() : Values();
  NormRopeValues result{.y = Values(x.size()), .dx = Values(x.size()), .d_gain = {}};
  std::vector<T> d_gain(dim);
  result.squares.resize(dim);
  for (size_t row = 0; row * dim < x.size(); ++row) {
    const size_t first = row * dim;
    T squares = 0;
    for (size_t d = 0; d < dim; ++d)
      squares += static_cast<T>(x[first + d]) * static_cast<T>(x[first + d]);
    const T scale = test_case.norm ? 1 / std::sqrt(squares / static_cast<T>(dim) +
                                                   static_cast<T>(static_cast<float>(kEps)))
                                   : T(1);
    std::vector<T> n(dim), g(dim);
    for (size_t d = 0; d < dim; ++d) {
      n[d] = static_cast<T>(x[first + d]) * scale;
      g[d] = static_cast<T>(dy[first + d]);
    }
    const auto angle = [&](size_t d) {
      return row / heads % static_cast<size_t>(test_case.tokens()) * half + d;
    };
    for (size_t d = 0; d < (test_case.rotate ? half : dim); ++d) {
      const T low = n[d] * static_cast<T>(gain[d]);
      if (!test_case.rotate) {
        result.y[first + d] = low;
        continue;
      }
      const T high = n[half + d] * static_cast<T>(gain[half + d]);
      const T c = static_cast<T>(cos[angle(d)]), s = static_cast<T>(sin[angle(d)]);
      result.y[first + d] = low * c - high * s;
      result.y[first + half + d] = high * c + low * s;
      const T g_low = g[d] * c + g[half + d] * s;
      g[half + d] = g[half + d] * c - g[d] * s;
      g[d] = g_low;
    }
    T mean = 0;
    for (size_t d = 0; d < dim; ++d) {
      mean += static_cast<T>(gain[d]) * g[d] * n[d] / static_cast<T>(dim);
      d_gain[d] += g[d] * n[d];
      result.squares[d] += std::pow(static_cast<double>(g[d] * n[d]), 2);
    }
    for (size_t d = 0; d < dim; ++d) {
      const T term = static_cast<T>(gain[d]) * g[d];
      result.dx[first + d] = test_case.norm ? (term - n[d] * mean) * scale : g[d];
      result.dx_term = std::max(result.dx_term, std::abs(static_cast<double>(term * scale)));
    }
  }
  if (test_case.norm) result.d_gain.assign(d_gain.begin(), d_gain.end());
  return result;
}

struct NormRopeOutputs {
  HostTensor y, dx, d_gain;
};

NormRopeOutputs run_norm_rope(const cpu::Kernels& kernels, const Case& test_case,
                              const NormRopeInputs& inputs) {
  NormRopeOutputs out;
  out.y = HostTensor(test_case.out_dtype, test_case.sizes, test_case.layout);
  out.dx = HostTensor(test_case.dtype, test_case.sizes, test_case.layout);
  if (test_case.norm) out.d_gain = HostTensor(test_case.dtype, {test_case.dim()});
  cpu::norm_rope(kernels, {.x = inputs.x.view(),
                           .gain = inputs.gain.view(),
                           .cos = inputs.cos.view(),
                           .sin = inputs.sin.view(),
                           .eps = kEps,
                           .y = out.y.view()});
  cpu::norm_rope_backward(kernels, {.dy = inputs.dy.view(),
                                    .x = inputs.x.view(),
                                    .gain = inputs.gain.view(),
                                    .cos = inputs.cos.view(),
                                    .sin = inputs.sin.view(),
                                    .eps = kEps,
                                    .dx = out.dx.view(),
                                    .d_gain = out.d_gain.view()});
  return out;
}

/// A float32 formula may have an error of two roundings of its terms where the plain loop happens
/// to have none: of few numbers, its largest error says little.
constexpr double kTwoRoundings = 0x1p-23;

/// `floor` is such an error.
void expect_near(const char* tensor, const HostTensor& result, const Values& truth,
                 const Values& plain, double floor = 0.0) {
  EXPECT_EQ(result.check_guards(), "") << tensor;
  Values rounded_plain;
  for (const double value : plain) rounded_plain.push_back(rounded(result.dtype(), value));
  Errors errors = errors_of(rounded_plain, truth);
  errors.max += floor;
  errors.rms += floor;
  const Values values = result.values();
  const Verdict verdict = judge({tensor, result.dtype(), values, truth, errors});
  EXPECT_LE(verdict.excess, 1.0) << verdict.message;
}

void expect_norm_rope_conforms(const Case& test_case) {
  const uint64_t seed = test_seed();
  SCOPED_TRACE(test_case.text() + ", PLX_TEST_SEED=" + std::to_string(seed));
  const NormRopeInputs inputs = make_inputs(test_case, seed);
  const auto truth = plain_norm_rope<double>(test_case, inputs);
  const auto plain = plain_norm_rope<float>(test_case, inputs);
  for (const cpu::Kernels* kernels : all_kernels()) {
    SCOPED_TRACE(kernels->isa);
    const NormRopeOutputs result = run_norm_rope(*kernels, test_case, inputs);
    expect_near("y", result.y, truth.y, plain.y);
    // A difference of terms that can be far larger than it: for D = 1 nothing but their rounding.
    expect_near("dx", result.dx, truth.dx, plain.dx, kTwoRoundings * truth.dx_term);
    if (!test_case.norm) continue;
    const double squares = *std::max_element(truth.squares.begin(), truth.squares.end());
    expect_near("d_gain", result.d_gain, truth.d_gain, plain.d_gain,
                kTwoRoundings * std::sqrt(squares));
  }
}

TEST(RowOps, NormOfAnySizeIsRight) {
  for (const int64_t dim : {1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 100, 128, 192, 1000})
    expect_norm_rope_conforms({.sizes = {5, dim}});
  expect_norm_rope_conforms({.sizes = {37}});
  expect_norm_rope_conforms({.sizes = {3, 700, 24}});  // several blocks of rows
  expect_norm_rope_conforms({.sizes = {2, 3, 2, 40000}});
}

TEST(RowOps, RotationOfAnyEvenSizeIsRight) {
  for (const bool norm : {false, true})
    for (const int64_t dim : {2, 4, 6, 10, 12, 16, 30, 32, 34, 64, 128, 192})
      for (const int64_t heads : {1, 2, 6})
        expect_norm_rope_conforms({.sizes = {2, 5, heads, dim}, .norm = norm, .rotate = true});
  expect_norm_rope_conforms({.sizes = {7, 3, 8}, .rotate = true});
  expect_norm_rope_conforms({.sizes = {3, 300, 2, 64}, .rotate = true});
}

TEST(RowOps, EveryDTypeAndLayoutIsRight) {
  constexpr DType kAll[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  for (const DType dtype : kAll)
    for (const DType out_dtype : kAll)
      for (const Layout layout : {Layout::kContiguous, Layout::kPadded, Layout::kHeadsFirst})
        for (const int64_t dim : {6, 64})
          for (const bool rotate : {false, true})
            expect_norm_rope_conforms({.sizes = {2, 9, 3, dim},
                                       .rotate = rotate,
                                       .dtype = dtype,
                                       .out_dtype = out_dtype,
                                       .layout = layout});
}

TEST(RowOps, ScalesFarFromOneAndZeroRowsAreRight) {
  for (const double scale : {0.0, 1e-12, 1e-3, 1e6, 1e15})
    expect_norm_rope_conforms({.sizes = {2, 3, 2, 20}, .rotate = true, .scale = scale});
}

TEST(RowOps, EmptyTensorsHaveAGradientOfZero) {
  const Case test_case{.sizes = {0, 2, 8}};
  for (const cpu::Kernels* kernels : all_kernels()) {
    const auto result = run_norm_rope(*kernels, test_case, make_inputs(test_case, 1));
    EXPECT_EQ(result.d_gain.values(), Values(8, 0.0));
  }
}

struct SwigluInputs {
  HostTensor gate, up, dy;
};

SwigluInputs make_swiglu_inputs(const Case& test_case, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto fill = [&](double scale) {
    Values values = normal_values(count_of(test_case.sizes), random);
    for (double& value : values) value *= scale;
    return HostTensor::of(test_case.dtype, test_case.sizes, values, test_case.layout);
  };
  return {.gate = fill(test_case.scale), .up = fill(1.0), .dy = fill(1.0)};
}

struct SwigluValues {
  Values y, d_gate, d_up;
  double d_gate_term = 0.0;  // the largest |dy up s| (1 + |gate| (1 - s))
};

template <typename T>
SwigluValues plain_swiglu(const SwigluInputs& inputs) {
  const Values gate = inputs.gate.values(), up = inputs.up.values(), dy = inputs.dy.values();
  SwigluValues result;
  for (size_t i = 0; i < gate.size(); ++i) {
    const auto x = static_cast<T>(gate[i]), u = static_cast<T>(up[i]), d = static_cast<T>(dy[i]);
    const T s = 1 / (1 + std::exp(-x));
    result.y.push_back(x * s * u);
    result.d_up.push_back(d * x * s);
    result.d_gate.push_back(d * u * s * (1 + x * (1 - s)));
    const auto term = static_cast<double>(std::abs(d * u * s) * (1 + std::abs(x) * (1 - s)));
    result.d_gate_term = std::max(result.d_gate_term, term);
  }
  return result;
}

struct SwigluOutputs {
  HostTensor y, d_gate, d_up;
};

SwigluOutputs run_swiglu(const cpu::Kernels& kernels, const Case& test_case,
                         const SwigluInputs& inputs) {
  const HostTensor empty(test_case.dtype, test_case.sizes, test_case.layout);
  SwigluOutputs out{.y = empty, .d_gate = empty, .d_up = empty};
  cpu::swiglu(kernels, {.gate = inputs.gate.view(), .up = inputs.up.view(), .y = out.y.view()});
  cpu::swiglu_backward(kernels, {.dy = inputs.dy.view(),
                                 .gate = inputs.gate.view(),
                                 .up = inputs.up.view(),
                                 .d_gate = out.d_gate.view(),
                                 .d_up = out.d_up.view()});
  return out;
}

TEST(RowOps, SwigluIsRight) {
  std::vector<Case> cases;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    for (const Layout layout : {Layout::kContiguous, Layout::kPadded, Layout::kHeadsFirst})
      for (const int64_t dim : {1, 3, 16, 37, 512, 1030})
        for (const double scale : {1.0, 12.0})
          cases.push_back({.sizes = {2, 3, dim}, .dtype = dtype, .layout = layout, .scale = scale});
  cases.push_back({.sizes = {200, 384}});
  cases.push_back({.sizes = {5000}});
  for (const Case& test_case : cases) {
    const uint64_t seed = test_seed();
    SCOPED_TRACE(test_case.text() + ", PLX_TEST_SEED=" + std::to_string(seed));
    const SwigluInputs inputs = make_swiglu_inputs(test_case, seed);
    const auto truth = plain_swiglu<double>(inputs);
    const auto plain = plain_swiglu<float>(inputs);
    for (const cpu::Kernels* kernels : all_kernels()) {
      SCOPED_TRACE(kernels->isa);
      const SwigluOutputs result = run_swiglu(*kernels, test_case, inputs);
      expect_near("y", result.y, truth.y, plain.y);
      expect_near("d_gate", result.d_gate, truth.d_gate, plain.d_gate,
                  kTwoRoundings * truth.d_gate_term);
      expect_near("d_up", result.d_up, truth.d_up, plain.d_up);
    }
  }
}

TEST(RowOps, SwigluOfLargeGatesNeitherOverflowsNorVanishesEarly) {
  const Case test_case{.sizes = {8}};
  const SwigluInputs inputs{
      .gate = HostTensor::of(DType::kFloat32, {8}, {0, -0.0, -1e30, 1e30, -88, 88, -20, 20}),
      .up = HostTensor::of(DType::kFloat32, {8}, Values(8, 1.0)),
      .dy = HostTensor::of(DType::kFloat32, {8}, Values(8, 1.0))};
  for (const cpu::Kernels* kernels : all_kernels()) {
    const SwigluOutputs result = run_swiglu(*kernels, test_case, inputs);
    const auto truth = plain_swiglu<double>(inputs);
    for (int64_t i = 0; i < 8; ++i) {
      // |x| 2^-24 from rounding x log2(e), a few units more, and 0 for what is below 1e-36.
      const auto allowed = [](double value) { return std::abs(value) * 4e-6 + 1e-35; };
      const auto idx = static_cast<size_t>(i);
      EXPECT_NEAR(result.y.get(i), truth.y[idx], allowed(truth.y[idx])) << i;
      EXPECT_NEAR(result.d_gate.get(i), truth.d_gate[idx], allowed(truth.d_gate[idx])) << i;
    }
  }
}

TEST(RowOps, ANaNOrInfinityShowsInItsRowAndInNoOther) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  for (const cpu::Kernels* kernels : all_kernels())
    for (const double bad : {kNaN, std::numeric_limits<double>::infinity()})
      for (const int64_t dim : {12, 64}) {
        const Case test_case{.sizes = {3, 2, dim}, .rotate = true};
        NormRopeInputs inputs = make_inputs(test_case, 5);
        inputs.x.set(2 * dim + 3, bad);  // row 2
        const NormRopeOutputs result = run_norm_rope(*kernels, test_case, inputs);
        for (int64_t row = 0; row < 6; ++row) {
          EXPECT_EQ(std::isnan(result.y.get(row * dim + 3)), row == 2) << row;
          EXPECT_EQ(std::isnan(result.dx.get(row * dim + 3)), row == 2) << row;
        }
        EXPECT_TRUE(std::isnan(result.d_gain.get(3)));
        const Case flat{.sizes = {3, dim}};
        SwigluInputs gates = make_swiglu_inputs(flat, 5);
        gates.gate.set(3, kNaN);
        gates.up.set(5, bad);
        const SwigluOutputs glu = run_swiglu(*kernels, flat, gates);
        for (int64_t i = 0; i < 3 * dim; ++i) {
          EXPECT_EQ(std::isfinite(glu.y.get(i)), i != 3 && i != 5) << i;
          EXPECT_EQ(std::isfinite(glu.d_gate.get(i)), i != 3 && i != 5) << i;
          EXPECT_EQ(std::isfinite(glu.d_up.get(i)), i != 3) << i;
        }
      }
}

TEST(RowOps, OneTwoAndThreeThreadsGiveTheSameBits) {
  const Case norm{.sizes = {4, 130, 3, 64}, .rotate = true, .dtype = DType::kBFloat16};
  const Case glu{.sizes = {300, 384}};
  const NormRopeInputs inputs = make_inputs(norm, 3);
  const SwigluInputs gates = make_swiglu_inputs(glu, 3);
  for (const cpu::Kernels* kernels : all_kernels()) {
    std::vector<NormRopeOutputs> norms;
    std::vector<SwigluOutputs> glus;
    for (const int count : {1, 2, 3}) {
      core::ThreadPool pool(count);
      set_parallel_for([&](int64_t num_tasks, const std::function<void(int64_t)>& body) {
        EXPECT_GE(num_tasks, 3);  // else nothing is compared here
        pool.run(num_tasks, body);
      });
      norms.push_back(run_norm_rope(*kernels, norm, inputs));
      glus.push_back(run_swiglu(*kernels, glu, gates));
      set_parallel_for({});
      EXPECT_TRUE(norms[0].y.same_bits(norms.back().y));
      EXPECT_TRUE(norms[0].dx.same_bits(norms.back().dx));
      EXPECT_TRUE(norms[0].d_gain.same_bits(norms.back().d_gain));
      EXPECT_TRUE(glus[0].y.same_bits(glus.back().y));
      EXPECT_TRUE(glus[0].d_gate.same_bits(glus.back().d_gate));
      EXPECT_TRUE(glus[0].d_up.same_bits(glus.back().d_up));
    }
  }
}

/// The message with which the call is refused.
std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "not refused";
}

TEST(RowOps, BadArgumentsAreRefusedByName) {
  const cpu::Kernels& kernels = *all_kernels().front();
  std::vector<float> memory(4096), out(4096);
  float* const in = memory.data();
  const auto x = make_view(in, {2, 3, 4, 6});
  const auto y = make_view(out.data(), {2, 3, 4, 6});
  const auto gain = make_view(in, {6}), table = make_view(in, {3, 3});
  const auto norm = [&](cpu::NormRopeArgs args) {
    return refusal([&] { cpu::norm_rope(kernels, args); });
  };
  const auto expect = [](const std::string& message, const std::string& words) {
    EXPECT_NE(message.find(words), std::string::npos) << message;
  };
  expect(norm({.x = x, .y = y}), "neither a gain nor cos and sin");
  expect(norm({.gain = gain, .y = y}), "x is missing");
  expect(norm({.x = x, .gain = gain}), "y is missing");
  expect(norm({.x = x, .gain = make_view(in, {5}), .y = y}), "gain has shape [5]");
  expect(norm({.x = x, .gain = gain, .y = make_view(out.data(), {2, 3, 4, 5})}), "y has shape");
  expect(norm({.x = x, .cos = table, .y = y}), "sin is missing");
  expect(norm({.x = x, .cos = table, .sin = make_view(in, {2, 3}), .y = y}),
         "sin has shape [2, 3]; it must be [3, 3]");
  expect(norm({.x = make_view(in, {2, 6}), .cos = table, .sin = table, .y = y}), "[.., N, H, D]");
  expect(norm({.x = make_view(in, {2, 3, 4, 5}), .cos = table, .sin = table, .y = y}), "even D");
  expect(norm({.x = x, .gain = gain, .eps = -1.0, .y = y}), "eps is -1");
  expect(norm({.x = make_view(in, {2, 0}), .gain = gain, .y = y}), "must not be empty");
  expect(norm({.x = make_view(in, {6, 6}, {1, 6}), .gain = gain, .y = y}), "x has stride 6");
  expect(norm({.x = x, .gain = gain, .y = make_view(in, {2, 3, 4, 6})}), "y and x share memory");
  expect(norm({.x = x, .gain = gain, .y = make_view(out.data(), {2, 3, 4, 6}, {0, 24, 6, 1})}),
         "y is written");
  std::vector<double> doubles(6);
  expect(norm({.x = x, .gain = make_view(doubles.data(), {6}), .y = y}), "gain is float64");
  TensorView elsewhere = x;
  elsewhere.device.type = DeviceType::kCuda;
  expect(norm({.x = elsewhere, .gain = gain, .y = y}), "x is not in CPU memory");
  const auto other = make_view(in, {2, 3, 4, 8});
  expect(refusal([&] { cpu::swiglu(kernels, {.gate = x, .up = other, .y = y}); }),
         "up has shape [2, 3, 4, 8]; it must be [2, 3, 4, 6] (the shape of gate)");
  expect(refusal([&] { cpu::swiglu_backward(kernels, {.dy = x, .gate = x, .up = x}); }),
         "d_gate is missing");
  expect(
      refusal([&] { cpu::norm_rope_backward(kernels, {.dy = x, .x = x, .gain = gain, .dx = y}); }),
      "d_gain is missing");
}

}  // namespace
}  // namespace parallax::testing
