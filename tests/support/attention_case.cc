// SPDX-License-Identifier: Apache-2.0
#include "support/attention_case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <sstream>

#include "support/placement.h"

namespace parallax::testing {
namespace {

const char* short_name(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return "bf16";
    case DType::kFloat16:
      return "fp16";
    case DType::kFloat64:
      return "fp64";
    case DType::kFloat32:
    case DType::kInt32:
      break;
  }
  return "fp32";
}

const char* suffix(Regime regime) {
  switch (regime) {
    case Regime::kNormal:
      return "";
    case Regime::kSharpLogits:
      return "_sharp";
    case Regime::kValueMean2:
      return "_vmean2";
    case Regime::kScoreMean50:
      return "_tmean50";
    case Regime::kMaxInLastTile:
      return "_maxlast";
    case Regime::kNormed:
      return "_normed";
    case Regime::kZeroProbe:
      return "_r0";
  }
  return "";
}

std::vector<int64_t> query_sizes(const AttentionInputs& inputs) {
  const AttentionCase& c = inputs.description;
  if (!c.packed.empty()) return {inputs.problem.total_queries(), c.Hq, c.D};
  return {c.B, c.Tq, c.Hq, c.D};
}

std::vector<int64_t> key_sizes(const AttentionInputs& inputs) {
  const AttentionCase& c = inputs.description;
  if (!c.packed.empty()) return {inputs.problem.total_keys(), c.Hkv, c.D};
  return {c.B, c.Tk.value_or(c.Tq), c.Hkv, c.D};
}

std::vector<int64_t> stat_sizes(const AttentionInputs& inputs) {
  const AttentionCase& c = inputs.description;
  if (!c.packed.empty()) return {c.Hq, inputs.problem.total_queries()};
  return {c.B, c.Hq, c.Tq};
}

HostTensor cu_seqlens(const std::vector<SequenceLengths>& sequences,
                      int64_t SequenceLengths::* length) {
  if (sequences.empty()) return {};
  std::vector<int32_t> starts{0};
  for (const SequenceLengths& sequence : sequences)
    starts.push_back(starts.back() + static_cast<int32_t>(sequence.*length));
  const auto count = static_cast<int64_t>(starts.size());
  return HostTensor::ints(starts, {count});
}

/// [B, H, T] or [H, T] to rows of heads, or back: the same walk in both directions.
template <typename Body>
void for_each_stat(const std::vector<int64_t>& sizes, Body body) {
  const int64_t batch = sizes.size() == 3 ? sizes[0] : 1;
  const int64_t heads = sizes[sizes.size() - 2], tokens = sizes[sizes.size() - 1];
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < tokens; ++i)
        body((b * heads + h) * tokens + i, static_cast<size_t>((b * tokens + i) * heads + h));
}

HostTensor stat_tensor(const AttentionInputs& inputs, const std::vector<double>& canonical) {
  HostTensor tensor(DType::kFloat32, stat_sizes(inputs), inputs.description.layout);
  for_each_stat(tensor.sizes(), [&](int64_t idx, size_t row) { tensor.set(idx, canonical[row]); });
  return tensor;
}

std::vector<double> canonical_stats(const HostTensor& tensor) {
  std::vector<double> values(static_cast<size_t>(tensor.num_elements()));
  for_each_stat(tensor.sizes(), [&](int64_t idx, size_t row) { values[row] = tensor.get(idx); });
  return values;
}

void expect_guards(const char* tensor, const HostTensor& value) {
  const std::string found = value.check_guards();
  EXPECT_TRUE(found.empty()) << tensor << " " << found;
}

}  // namespace

std::string AttentionCase::name() const {
  std::ostringstream text;
  if (packed.empty()) {
    text << "B" << B << "_Tq" << Tq << "_Tk" << Tk.value_or(Tq);
  } else {
    text << "packed";
    for (const auto& [num_queries, num_keys] : packed)
      text << "_" << num_queries << "x" << num_keys;
  }
  text << "_Hq" << Hq << "_Hkv" << Hkv << "_D" << D << "_" << short_name(dtype)
       << (mask == Mask::kCausal ? "_causal" : "_full");
  if (window) text << "_W" << *window;
  if (softmax_scale)
    text << "_scale" << (*softmax_scale < 0 ? "m" : "")
         << std::lround(std::abs(*softmax_scale) * 100.0f);
  text << suffix(regime);
  if (layout == Layout::kPadded) text << "_padded";
  if (layout == Layout::kGaps) text << "_gaps";
  if (layout == Layout::kHeadsFirst) text << "_heads_first";
  return text.str();
}

uint64_t test_seed() {
  static const uint64_t seed = [] {
    const char* const given = std::getenv("PLX_TEST_SEED");  // tests only; not a library variable
    return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  }();
  return seed;
}

std::vector<double> normal_values(int64_t count, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) value = normal(random);
  return values;
}

void apply_regime(Regime regime, PackedProblem& problem) {
  const auto D = static_cast<size_t>(problem.head_dim);
  const auto add = [](std::vector<double>& values, double amount) {
    for (double& value : values) value += amount;
  };
  const auto norm = [D](std::vector<double>& values) {
    for (size_t row = 0; row < values.size(); row += D) {
      double sum = 0.0;
      for (size_t d = 0; d < D; ++d) sum += values[row + d] * values[row + d];
      const double factor = std::sqrt(static_cast<double>(D) / (sum + 1e-6));
      for (size_t d = 0; d < D; ++d) values[row + d] *= factor;
    }
  };
  switch (regime) {
    case Regime::kNormal:
      break;
    case Regime::kSharpLogits:
      for (double& value : problem.q) value *= 4.0;
      break;
    case Regime::kValueMean2:
      add(problem.v, 2.0);
      break;
    case Regime::kScoreMean50:
      add(problem.r, std::sqrt(50.0 / static_cast<double>(D)));
      add(problem.k, std::sqrt(50.0 / static_cast<double>(D)));
      break;
    case Regime::kMaxInLastTile: {
      add(problem.q, 1.0);
      const double last = static_cast<double>(std::max<size_t>(problem.k.size(), 1));
      for (size_t idx = 0; idx < problem.k.size(); ++idx)
        problem.k[idx] += 8.0 / std::sqrt(static_cast<double>(D)) * static_cast<double>(idx) / last;
      break;
    }
    case Regime::kNormed:
      norm(problem.q);
      norm(problem.r);
      norm(problem.k);
      break;
    case Regime::kZeroProbe:
      std::fill(problem.r.begin(), problem.r.end(), 0.0);
      break;
  }
}

AttentionInputs::AttentionInputs(const AttentionCase& attention_case, uint64_t seed)
    : description(attention_case) {
  const AttentionCase& c = description;
  problem = {.sequences = c.packed,
             .num_heads_q = c.Hq,
             .num_heads_kv = c.Hkv,
             .head_dim = c.D,
             .options = {.softmax_scale = c.softmax_scale, .mask = c.mask, .window = c.window}};
  if (c.packed.empty())
    problem.sequences.assign(static_cast<size_t>(c.B), {c.Tq, c.Tk.value_or(c.Tq)});
  const int64_t q_count = problem.total_queries() * c.Hq * c.D;
  const int64_t k_count = problem.total_keys() * c.Hkv * c.D;
  std::mt19937_64 random(seed);
  problem.q = normal_values(q_count, random);
  problem.r = normal_values(q_count, random);
  problem.k = normal_values(k_count, random);
  problem.v = normal_values(k_count, random);
  problem.d_out = normal_values(q_count, random);
  apply_regime(c.regime, problem);
  const auto place = [&](HostTensor& tensor, std::vector<double>& values,
                         const std::vector<int64_t>& sizes) {
    tensor = HostTensor::of(c.dtype, sizes, values, c.layout);
    values = tensor.values();  // as the backend sees them
  };
  place(q, problem.q, query_sizes(*this));
  place(r, problem.r, query_sizes(*this));
  place(k, problem.k, key_sizes(*this));
  place(v, problem.v, key_sizes(*this));
  place(d_out, problem.d_out, query_sizes(*this));
  cu_seqlens_q = cu_seqlens(c.packed, &SequenceLengths::num_queries);
  cu_seqlens_k = cu_seqlens(c.packed, &SequenceLengths::num_keys);
}

ForwardTensors poisoned_outputs(DType dtype, Layout layout, const std::vector<int64_t>& query_sizes,
                                const std::vector<int64_t>& stat_sizes) {
  return {.out = HostTensor(dtype, query_sizes, layout),
          .out_softmax = HostTensor(dtype, query_sizes, layout),
          .lse = HostTensor(DType::kFloat32, stat_sizes, layout),
          .t_mean = HostTensor(DType::kFloat32, stat_sizes, layout)};
}

void expect_guards_intact(const ForwardTensors& tensors) {
  expect_guards("out", tensors.out);
  expect_guards("out_softmax", tensors.out_softmax);
  expect_guards("lse", tensors.lse);
  expect_guards("t_mean", tensors.t_mean);
}

ForwardTensors run_forward(const Backend& backend, const AttentionInputs& inputs, Outputs outputs) {
  const DType dtype = inputs.description.dtype;
  const Layout layout = inputs.description.layout;
  ForwardTensors result = poisoned_outputs(dtype, layout, query_sizes(inputs), stat_sizes(inputs));
  if (outputs == Outputs::kInference) result.out_softmax = result.lse = result.t_mean = {};
  Placement placement(backend);
  const ForwardArgs args{.q = placement.input(inputs.q),
                         .r = placement.input(inputs.r),
                         .k = placement.input(inputs.k),
                         .v = placement.input(inputs.v),
                         .cu_seqlens_q = placement.input(inputs.cu_seqlens_q),
                         .cu_seqlens_k = placement.input(inputs.cu_seqlens_k),
                         .options = inputs.problem.options,
                         .out = placement.output(result.out),
                         .out_softmax = placement.output(result.out_softmax),
                         .lse = placement.output(result.lse),
                         .t_mean = placement.output(result.t_mean)};
  run_placed(backend, args, placement);
  expect_guards_intact(result);
  return result;
}

GradientTensors run_backward(const Backend& backend, const AttentionInputs& inputs,
                             const ForwardValues& saved) {
  const DType dtype = inputs.description.dtype;
  const Layout layout = inputs.description.layout;
  const HostTensor out = HostTensor::of(dtype, query_sizes(inputs), saved.out, layout);
  const HostTensor out_softmax =
      HostTensor::of(dtype, query_sizes(inputs), saved.out_softmax, layout);
  const HostTensor lse = stat_tensor(inputs, saved.lse);
  const HostTensor t_mean = stat_tensor(inputs, saved.t_mean);
  GradientTensors result{.dq = HostTensor(dtype, query_sizes(inputs), layout),
                         .dr = HostTensor(dtype, query_sizes(inputs), layout),
                         .dk = HostTensor(dtype, key_sizes(inputs), layout),
                         .dv = HostTensor(dtype, key_sizes(inputs), layout)};
  Placement placement(backend);
  const BackwardArgs args{.d_out = placement.input(inputs.d_out),
                          .q = placement.input(inputs.q),
                          .r = placement.input(inputs.r),
                          .k = placement.input(inputs.k),
                          .v = placement.input(inputs.v),
                          .out = placement.input(out),
                          .out_softmax = placement.input(out_softmax),
                          .lse = placement.input(lse),
                          .t_mean = placement.input(t_mean),
                          .cu_seqlens_q = placement.input(inputs.cu_seqlens_q),
                          .cu_seqlens_k = placement.input(inputs.cu_seqlens_k),
                          .options = inputs.problem.options,
                          .dq = placement.output(result.dq),
                          .dr = placement.output(result.dr),
                          .dk = placement.output(result.dk),
                          .dv = placement.output(result.dv)};
  run_placed(backend, args, placement);
  expect_guards("dq", result.dq);
  expect_guards("dr", result.dr);
  expect_guards("dk", result.dk);
  expect_guards("dv", result.dv);
  return result;
}

ForwardValues values_of(const ForwardTensors& tensors) {
  return {.out = tensors.out.values(),
          .out_softmax = tensors.out_softmax.values(),
          .lse = canonical_stats(tensors.lse),
          .t_mean = canonical_stats(tensors.t_mean)};
}

GradientValues values_of(const GradientTensors& tensors) {
  return {.dq = tensors.dq.values(),
          .dr = tensors.dr.values(),
          .dk = tensors.dk.values(),
          .dv = tensors.dv.values()};
}

int64_t sanitizer_length(int64_t length) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return std::min<int64_t>(length, 200);
#else
  return length;
#endif
}

}  // namespace parallax::testing
