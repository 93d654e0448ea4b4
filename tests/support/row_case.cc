// SPDX-License-Identifier: Apache-2.0
#include "support/row_case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "cpu/row_ops.h"
#include "row_backends.h"
#include "support/attention_case.h"
#include "support/placement.h"
#include "support/tolerance.h"

namespace parallax::testing {
namespace {

using Sizes = std::vector<int64_t>;
using Values = std::vector<double>;

int64_t count_of(const Sizes& sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return count;
}

HostTensor scaled_normal(DType dtype, const RowCase& row_case, double scale,
                         std::mt19937_64& random) {
  Values values = normal_values(count_of(row_case.sizes), random);
  for (double& value : values) value *= scale;
  return HostTensor::of(dtype, row_case.sizes, values, row_case.layout);
}

struct NormRopeValues {
  Values y, dx, d_gain;
  double dx_term = 0.0;           // the largest |gain g / rms(x)|
  std::vector<double> squares{};  // of the terms of d_gain, summed
};

/// The formulas in T, one operation after the other.
template <typename T>
NormRopeValues plain_norm_rope(const RowCase& row_case, const NormRopeInputs& inputs) {
  const auto dim = static_cast<size_t>(row_case.dim()), half = dim / 2;
  const auto heads = row_case.rotate ? static_cast<size_t>(row_case.sizes.end()[-2]) : 1;
  const Values x = inputs.x.values(), dy = inputs.dy.values();
  const Values gain = row_case.norm ? inputs.gain.values() : Values(dim, 1.0);
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
    const T scale = row_case.norm ? 1 / std::sqrt(squares / static_cast<T>(dim) +
                                                  static_cast<T>(static_cast<float>(row_case.eps)))
                                  : T(1);
    std::vector<T> n(dim), g(dim);
    for (size_t d = 0; d < dim; ++d) {
      n[d] = static_cast<T>(x[first + d]) * scale;
      g[d] = static_cast<T>(dy[first + d]);
    }
    const auto angle = [&](size_t d) {
      return row / heads % static_cast<size_t>(row_case.tokens()) * half + d;
    };
    for (size_t d = 0; d < (row_case.rotate ? half : dim); ++d) {
      const T low = n[d] * static_cast<T>(gain[d]);
      if (!row_case.rotate) {
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
      result.dx[first + d] = row_case.norm ? (term - n[d] * mean) * scale : g[d];
      result.dx_term = std::max(result.dx_term, std::abs(static_cast<double>(term * scale)));
    }
  }
  if (row_case.norm) result.d_gain.assign(d_gain.begin(), d_gain.end());
  return result;
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

/// Checks the arguments and runs them where the tensors of `placement` are.
template <typename Args, typename OnCpu, typename OnAny>
void run(const TestedRowOps& ops, Args args, Placement& placement, OnCpu on_cpu, OnAny on_any) {
  core::validate(args);
  if constexpr (requires { workspace_bytes(args); })
    args.execution = placement.execution(workspace_bytes(args));
  if (ops.kernels != nullptr)
    on_cpu(*ops.kernels, args);
  else
    on_any(args);
  placement.finish();
}

Placement placement_of(const TestedRowOps& ops) {
  return Placement(ops.kernels != nullptr ? DeviceType::kCpu : DeviceType::kCuda);
}

}  // namespace

std::string RowCase::text() const {
  std::string text;
  for (const int64_t size : sizes) text += std::to_string(size) + " ";
  return text + (norm ? "norm " : "") + (rotate ? "rotate " : "") + std::string(name(dtype)) +
         " and " + std::string(name(other_dtype)) + " to " + std::string(name(out_dtype)) +
         " layout " + std::to_string(static_cast<int>(layout)) + " scale " + std::to_string(scale) +
         " eps " + std::to_string(eps);
}

RowCase of_dtype(RowCase row_case, DType dtype) {
  row_case.dtype = row_case.out_dtype = row_case.other_dtype = dtype;
  return row_case;
}

NormRopeInputs make_norm_rope_inputs(const RowCase& row_case, uint64_t seed) {
  std::mt19937_64 random(seed);
  NormRopeInputs inputs;
  inputs.x = scaled_normal(row_case.dtype, row_case, row_case.scale, random);
  inputs.dy = scaled_normal(row_case.out_dtype, row_case, 1.0, random);
  if (row_case.norm)
    inputs.gain = HostTensor::of(row_case.other_dtype, {row_case.dim()},
                                 normal_values(row_case.dim(), random));
  if (row_case.rotate) {
    Values cos, sin;
    for (const double angle : normal_values(row_case.tokens() * row_case.dim() / 2, random)) {
      cos.push_back(std::cos(3 * angle));
      sin.push_back(std::sin(3 * angle));
    }
    const Sizes sizes = {row_case.tokens(), row_case.dim() / 2};
    inputs.cos = HostTensor::of(DType::kFloat32, sizes, cos);
    inputs.sin = HostTensor::of(DType::kFloat32, sizes, sin, Layout::kPadded);
  }
  return inputs;
}

NormRopeOutputs run_norm_rope(const TestedRowOps& ops, const RowCase& row_case,
                              const NormRopeInputs& inputs) {
  NormRopeOutputs out;
  out.y = HostTensor(row_case.out_dtype, row_case.sizes, row_case.layout);
  out.dx = HostTensor(row_case.dtype, row_case.sizes, row_case.layout);
  if (row_case.norm) out.d_gain = HostTensor(row_case.other_dtype, {row_case.dim()});
  Placement forward = placement_of(ops), backward = placement_of(ops);
  run(ops,
      core::NormRopeArgs{.x = forward.input(inputs.x),
                         .gain = forward.input(inputs.gain),
                         .cos = forward.input(inputs.cos),
                         .sin = forward.input(inputs.sin),
                         .eps = row_case.eps,
                         .y = forward.output(out.y)},
      forward, cpu::norm_rope, norm_rope);
  run(ops,
      core::NormRopeBackwardArgs{.dy = backward.input(inputs.dy),
                                 .x = backward.input(inputs.x),
                                 .gain = backward.input(inputs.gain),
                                 .cos = backward.input(inputs.cos),
                                 .sin = backward.input(inputs.sin),
                                 .eps = row_case.eps,
                                 .dx = backward.output(out.dx),
                                 .d_gain = backward.output(out.d_gain)},
      backward, cpu::norm_rope_backward, norm_rope_backward);
  return out;
}

SwigluInputs make_swiglu_inputs(const RowCase& row_case, uint64_t seed) {
  std::mt19937_64 random(seed);
  SwigluInputs inputs;
  inputs.gate = scaled_normal(row_case.dtype, row_case, row_case.scale, random);
  inputs.up = scaled_normal(row_case.other_dtype, row_case, 1.0, random);
  inputs.dy = scaled_normal(row_case.out_dtype, row_case, 1.0, random);
  return inputs;
}

SwigluOutputs run_swiglu(const TestedRowOps& ops, const RowCase& row_case,
                         const SwigluInputs& inputs) {
  SwigluOutputs out{.y = HostTensor(row_case.out_dtype, row_case.sizes, row_case.layout),
                    .d_gate = HostTensor(row_case.dtype, row_case.sizes, row_case.layout),
                    .d_up = HostTensor(row_case.other_dtype, row_case.sizes, row_case.layout)};
  Placement forward = placement_of(ops), backward = placement_of(ops);
  run(ops,
      core::SwigluArgs{.gate = forward.input(inputs.gate),
                       .up = forward.input(inputs.up),
                       .y = forward.output(out.y)},
      forward, cpu::swiglu, swiglu);
  run(ops,
      core::SwigluBackwardArgs{.dy = backward.input(inputs.dy),
                               .gate = backward.input(inputs.gate),
                               .up = backward.input(inputs.up),
                               .d_gate = backward.output(out.d_gate),
                               .d_up = backward.output(out.d_up)},
      backward, cpu::swiglu_backward, swiglu_backward);
  return out;
}

void expect_norm_rope_conforms(const RowCase& row_case) {
  const uint64_t seed = test_seed();
  SCOPED_TRACE(row_case.text() + ", PLX_TEST_SEED=" + std::to_string(seed));
  const NormRopeInputs inputs = make_norm_rope_inputs(row_case, seed);
  const auto truth = plain_norm_rope<double>(row_case, inputs);
  const auto plain = plain_norm_rope<float>(row_case, inputs);
  for (const TestedRowOps& ops : tested_row_ops()) {
    SCOPED_TRACE(ops.name);
    const NormRopeOutputs result = run_norm_rope(ops, row_case, inputs);
    expect_near("y", result.y, truth.y, plain.y);
    // A difference of terms that can be far larger than it: for D = 1 nothing but their rounding.
    expect_near("dx", result.dx, truth.dx, plain.dx, kTwoRoundings * truth.dx_term);
    if (!row_case.norm) continue;
    const double squares = *std::max_element(truth.squares.begin(), truth.squares.end());
    expect_near("d_gain", result.d_gain, truth.d_gain, plain.d_gain,
                kTwoRoundings * std::sqrt(squares));
  }
}

void expect_swiglu_conforms(const RowCase& row_case) {
  const uint64_t seed = test_seed();
  SCOPED_TRACE(row_case.text() + ", PLX_TEST_SEED=" + std::to_string(seed));
  const SwigluInputs inputs = make_swiglu_inputs(row_case, seed);
  const auto truth = plain_swiglu<double>(inputs);
  const auto plain = plain_swiglu<float>(inputs);
  for (const TestedRowOps& ops : tested_row_ops()) {
    SCOPED_TRACE(ops.name);
    const SwigluOutputs result = run_swiglu(ops, row_case, inputs);
    expect_near("y", result.y, truth.y, plain.y);
    expect_near("d_gate", result.d_gate, truth.d_gate, plain.d_gate,
                kTwoRoundings * truth.d_gate_term);
    expect_near("d_up", result.d_up, truth.d_up, plain.d_up);
  }
}

std::vector<double> true_swiglu(const SwigluInputs& inputs) {
  return plain_swiglu<double>(inputs).y;
}
std::vector<double> true_swiglu_d_gate(const SwigluInputs& inputs) {
  return plain_swiglu<double>(inputs).d_gate;
}

}  // namespace parallax::testing
