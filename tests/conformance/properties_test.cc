// What holds for every backend without a reference beside it: identities of the formula, causality,
// repeatability, and results that come together from parts.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/thread_pool.h"
#include "parallax/parallel.h"
#include "support/decode_case.h"

namespace parallax::testing {
namespace {

constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

/// Writes the problem's values to the tensors again after a test has changed them.
void rewrite(AttentionInputs& inputs) {
  const auto place = [&](HostTensor& tensor, std::vector<double>& values) {
    tensor = HostTensor::of(tensor.dtype(), tensor.sizes(), values, inputs.description.layout);
    values = tensor.values();
  };
  place(inputs.q, inputs.problem.q);
  place(inputs.r, inputs.problem.r);
  place(inputs.k, inputs.problem.k);
  place(inputs.v, inputs.problem.v);
}

void expect_forward_right(const AttentionInputs& inputs, const ForwardValues& truth,
                          const std::function<ForwardValues(const Backend&)>& run) {
  const DType dtype = inputs.description.dtype;
  expect_right([&](int num_orders) {
    const ForwardErrors plain = plain_errors(inputs.problem, truth, dtype, num_orders);
    std::vector<Verdict> verdicts;
    for (const auto& [label, backend] : tested_backends())
      judge_forward(dtype, run(*backend), truth, plain,
                    label + ", PLX_TEST_SEED=" + std::to_string(test_seed()), verdicts);
    return verdicts;
  });
}

TEST(Properties, ZeroProbeGivesSoftmaxAttentionBitForBit) {
  for (const DType dtype : kTypes) {
    const AttentionInputs inputs(
        {.B = 2, .Tq = 90, .Hq = 2, .D = 48, .dtype = dtype, .regime = Regime::kZeroProbe},
        test_seed());
    for (const auto& [label, backend] : tested_backends()) {
      const ForwardTensors result = run_forward(*backend, inputs);
      EXPECT_TRUE(result.out.same_bits(result.out_softmax)) << label;
    }
  }
}

TEST(Properties, OneVisibleKeyGivesItsValueAndZeroScoreGradientsExactly) {
  for (const DType dtype : kTypes) {
    const AttentionInputs inputs(
        {.B = 2, .Tq = 100, .Hq = 3, .Hkv = 3, .D = 48, .dtype = dtype, .window = 1}, test_seed());
    for (const auto& [label, backend] : tested_backends()) {
      SCOPED_TRACE(label + ", PLX_TEST_SEED=" + std::to_string(test_seed()));
      const ForwardTensors result = run_forward(*backend, inputs);
      EXPECT_TRUE(result.out.same_bits(inputs.v));
      const GradientValues gradients = values_of(run_backward(*backend, inputs, values_of(result)));
      const std::vector<double> zeros(gradients.dq.size(), 0.0);
      EXPECT_TRUE(gradients.dq == zeros);
      EXPECT_TRUE(gradients.dr == zeros);
      EXPECT_TRUE(gradients.dk == zeros);
    }
  }
}

TEST(Properties, LaterKeysAndValuesDoNotChangeABit) {
  constexpr int64_t kT = 150, kCut = 77, kD = 24;
  AttentionInputs inputs({.Tq = kT, .D = kD}, test_seed());
  AttentionInputs changed = inputs;
  for (int64_t idx = kCut * kD; idx < kT * kD; ++idx) {
    changed.k.set(idx, 3.0);
    changed.v.set(idx, 1e30);
  }
  for (const auto& [label, backend] : tested_backends()) {
    const ForwardValues before = values_of(run_forward(*backend, inputs));
    const ForwardValues after = values_of(run_forward(*backend, changed));
    EXPECT_TRUE(std::equal(before.out.begin(), before.out.begin() + kCut * kD, after.out.begin()))
        << label;
    EXPECT_TRUE(std::equal(before.lse.begin(), before.lse.begin() + kCut, after.lse.begin()))
        << label;
  }
}

TEST(Properties, LaterKeysAndValuesDoNotChangeABitOfTheGradientsOfQueries) {
  constexpr int64_t kT = 150, kCut = 77, kD = 24;
  const AttentionInputs inputs({.Tq = kT, .D = kD}, test_seed());
  AttentionInputs changed = inputs;
  for (int64_t idx = kCut * kD; idx < kT * kD; ++idx) {
    changed.k.set(idx, 1e38);  // r.k and d_out.v overflow float32
    changed.v.set(idx, 1e38);
  }
  for (const auto& [label, backend] : tested_backends()) {
    const ForwardValues saved = values_of(run_forward(*backend, inputs));
    const GradientTensors before = run_backward(*backend, inputs, saved);
    const GradientTensors after = run_backward(*backend, changed, saved);
    for (int64_t idx = 0; idx < kCut * kD; ++idx) {
      ASSERT_EQ(before.dq.get(idx), after.dq.get(idx)) << label << ", dq at " << idx;
      ASSERT_EQ(before.dr.get(idx), after.dr.get(idx)) << label << ", dr at " << idx;
    }
  }
}

TEST(Properties, AVisibleNanShows) {
  AttentionInputs inputs({.Tq = 100, .D = 24}, test_seed());
  inputs.v.set(70 * 24, std::numeric_limits<double>::quiet_NaN());
  for (const auto& [label, backend] : tested_backends())
    EXPECT_TRUE(std::isnan(run_forward(*backend, inputs).out.get(90 * 24))) << label;
}

TEST(Properties, TheOrderOfKeysDoesNotMatterWithoutAMask) {
  constexpr size_t kT = 130, kD = 32;
  AttentionInputs inputs({.Tq = kT, .D = kD, .mask = Mask::kFull}, test_seed());
  const ForwardValues truth = true_forward(inputs.problem);
  std::vector<size_t> order(kT);
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937_64 random(test_seed());
  std::shuffle(order.begin(), order.end(), random);
  const PackedProblem before = inputs.problem;
  for (size_t row = 0; row < kT; ++row)
    for (size_t d = 0; d < kD; ++d) {
      inputs.problem.k[row * kD + d] = before.k[order[row] * kD + d];
      inputs.problem.v[row * kD + d] = before.v[order[row] * kD + d];
    }
  rewrite(inputs);
  expect_forward_right(inputs, truth,
                       [&](const Backend& b) { return values_of(run_forward(b, inputs)); });
}

/// Coordinate 0 of k is 1 for every key, so coordinate 0 of r adds a row constant to t.
AttentionInputs with_constant_coordinate(uint64_t seed, double shift) {
  AttentionInputs inputs({.Tq = 140, .D = 32}, seed);
  for (size_t idx = 0; idx < inputs.problem.k.size(); idx += 32) inputs.problem.k[idx] = 1.0;
  for (size_t idx = 0; idx < inputs.problem.r.size(); idx += 32) inputs.problem.r[idx] = shift;
  rewrite(inputs);
  return inputs;
}

TEST(Properties, ARowConstantInTheCovarianceScoreChangesOnlyItsMean) {
  ForwardValues truth = true_forward(with_constant_coordinate(test_seed(), 0.0).problem);
  for (double& t_mean : truth.t_mean) t_mean += 25.0;
  const AttentionInputs shifted = with_constant_coordinate(test_seed(), 25.0);
  expect_forward_right(shifted, truth,
                       [&](const Backend& b) { return values_of(run_forward(b, shifted)); });
}

TEST(Properties, ScoreGradientsOfARowSumToZero) {
  const AttentionInputs inputs = with_constant_coordinate(test_seed(), 0.5);
  const ForwardValues truth = true_forward(inputs.problem);
  const ForwardValues saved = rounded(truth, DType::kFloat32);
  const GradientValues gradients = true_backward(inputs.problem, truth);
  const GradientErrors plain =
      plain_errors(inputs.problem, gradients, saved, DType::kFloat32, kFewOrders);
  const auto allowed = [](const std::vector<double>& values, const Errors& errors) {
    double largest = 0.0;
    for (const double value : values) largest = std::max(largest, std::abs(value));
    return 2.0 * errors.max + 2.0 * unit_in_last_place(DType::kFloat32, largest);
  };
  for (const auto& [label, backend] : tested_backends()) {
    const GradientTensors result = run_backward(*backend, inputs, saved);
    for (int64_t row = 0; row < 140; ++row) {
      EXPECT_LE(std::abs(result.dq.get(row * 32)), allowed(gradients.dq, plain.dq)) << label;
      EXPECT_LE(std::abs(result.dr.get(row * 32)), allowed(gradients.dr, plain.dr)) << label;
    }
  }
}

/// Forward over thirds of the keys, merged by the public function.
ForwardValues merged_forward(const Backend& backend, const AttentionInputs& inputs) {
  const int64_t num_keys = inputs.k.sizes()[1], row = inputs.k.sizes()[2] * inputs.k.sizes()[3];
  std::vector<ForwardTensors> parts;
  for (const auto& [begin, end] :
       {std::pair<int64_t, int64_t>{0, 50}, {50, 51}, {51, num_keys}, {num_keys, num_keys}}) {
    AttentionInputs part = inputs;
    part.description.Tk = end - begin;
    const auto slice = [&](const HostTensor& tensor, int64_t first, int64_t last) {
      const std::vector<double> values = tensor.values();
      std::vector<int64_t> sizes = tensor.sizes();
      sizes[1] = last - first;
      return HostTensor::of(tensor.dtype(), sizes,
                            {values.begin() + first * row, values.begin() + last * row});
    };
    part.k = slice(inputs.k, begin, end);
    part.v = slice(inputs.v, begin, end);
    parts.push_back(run_forward(backend, part));
  }
  std::vector<PartialState> partials;
  for (const ForwardTensors& part : parts)
    partials.push_back({std::as_const(part.out).view(), std::as_const(part.out_softmax).view(),
                        std::as_const(part.lse).view(), std::as_const(part.t_mean).view()});
  ForwardTensors result = parts.front();
  for (HostTensor* tensor : {&result.out, &result.out_softmax, &result.lse, &result.t_mean})
    tensor->poison();
  merge_states({.partials = partials,
                .out = result.out.view(),
                .out_softmax = result.out_softmax.view(),
                .lse = result.lse.view(),
                .t_mean = result.t_mean.view()});
  return values_of(result);
}

TEST(Properties, MergedPartsEqualTheWhole) {
  const AttentionInputs inputs({.Tq = 40, .Tk = 120, .D = 32, .mask = Mask::kFull}, test_seed());
  expect_forward_right(inputs, true_forward(inputs.problem),
                       [&](const Backend& backend) { return merged_forward(backend, inputs); });
}

/// The whole sequence through a cache in chunks of any size equals the forward.
TEST(Properties, ChunkedPrefillEqualsTheWhole) {
  constexpr int64_t kT = 140, kRow = 2 * 32;
  const AttentionInputs whole({.Tq = kT, .Hq = 2, .Hkv = 2, .D = 32}, test_seed());
  const auto run = [&](const Backend& backend) {
    ForwardValues values;
    const auto append = [](std::vector<double>& all, const std::vector<double>& chunk) {
      all.insert(all.end(), chunk.begin(), chunk.end());
    };
    int64_t done = 0;
    for (const int64_t tokens : {1, 64, 3, 40, 32}) {
      DecodeInputs chunk({.sequences = {{tokens, done + tokens}}, .Hq = 2, .Hkv = 2, .D = 32},
                         test_seed());
      for (int64_t idx = 0; idx < (done + tokens) * kRow; ++idx) {
        chunk.k_cache.set(idx, whole.k.get(idx));
        chunk.v_cache.set(idx, whole.v.get(idx));
      }
      for (int64_t idx = 0; idx < tokens * kRow; ++idx) {
        chunk.q.set(idx, whole.q.get(done * kRow + idx));
        chunk.r.set(idx, whole.r.get(done * kRow + idx));
      }
      const ForwardValues part = values_of(run_decode(backend, chunk));
      append(values.out, part.out);
      append(values.out_softmax, part.out_softmax);
      append(values.lse, part.lse);
      append(values.t_mean, part.t_mean);
      done += tokens;
    }
    return values;
  };
  expect_forward_right(whole, true_forward(whole.problem), run);
}

struct AllResults {
  ForwardTensors forward, decode;
  GradientTensors backward;
};

AllResults run_all(const Backend& backend, DType dtype) {
  const AttentionInputs inputs(
      {.B = 3, .Tq = 140, .Hq = 4, .Hkv = 2, .D = 40, .dtype = dtype, .window = 100}, 11);
  const DecodeInputs decode({.sequences = {{1, 1300}, {2, 70}, {40, 90}},
                             .Hq = 4,
                             .Hkv = 2,
                             .D = 40,
                             .dtype = dtype,
                             .page_size = 16},
                            12);
  AllResults results{.forward = run_forward(backend, inputs),
                     .decode = run_decode(backend, decode),
                     .backward = {}};
  results.backward = run_backward(backend, inputs, values_of(results.forward));
  return results;
}

void expect_same_bits(const AllResults& a, const AllResults& b) {
  EXPECT_TRUE(a.forward.out.same_bits(b.forward.out));
  EXPECT_TRUE(a.forward.out_softmax.same_bits(b.forward.out_softmax));
  EXPECT_TRUE(a.forward.lse.same_bits(b.forward.lse));
  EXPECT_TRUE(a.forward.t_mean.same_bits(b.forward.t_mean));
  EXPECT_TRUE(a.decode.out.same_bits(b.decode.out));
  EXPECT_TRUE(a.decode.lse.same_bits(b.decode.lse));
  EXPECT_TRUE(a.backward.dq.same_bits(b.backward.dq));
  EXPECT_TRUE(a.backward.dr.same_bits(b.backward.dr));
  EXPECT_TRUE(a.backward.dk.same_bits(b.backward.dk));
  EXPECT_TRUE(a.backward.dv.same_bits(b.backward.dv));
}

/// Runs the library on a pool of the given size while it lives.
class ThreadsForScope {
 public:
  explicit ThreadsForScope(int count) : pool_(count) {
    set_parallel_for([this](int64_t num_tasks, const std::function<void(int64_t)>& body) {
      pool_.run(num_tasks, body);
    });
  }
  ~ThreadsForScope() { set_parallel_for({}); }

 private:
  core::ThreadPool pool_;
};

TEST(Determinism, ARepeatHasTheSameBits) {
  for (const auto& [label, backend] : tested_backends()) {
    SCOPED_TRACE(label);
    expect_same_bits(run_all(*backend, DType::kFloat32), run_all(*backend, DType::kFloat32));
  }
}

TEST(Determinism, AnyNumberOfThreadsGivesTheSameBits) {
  for (const auto& [label, backend] : tested_backends())
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      SCOPED_TRACE(label);
      std::vector<AllResults> results;
      for (const int count : {1, 2, 3, 8}) {  // 8: more than heads
        const ThreadsForScope threads(count);
        results.push_back(run_all(*backend, dtype));
      }
      for (size_t idx = 1; idx < results.size(); ++idx) expect_same_bits(results[0], results[idx]);
    }
}

// A program's own runner may take tasks in any order: one that waits for another must not hang.
TEST(Determinism, TasksFromLastToFirstGiveTheSameBits) {
  for (const auto& [label, backend] : tested_backends()) {
    SCOPED_TRACE(label);
    const AllResults results = run_all(*backend, DType::kFloat32);
    set_parallel_for([](int64_t num_tasks, const std::function<void(int64_t)>& body) {
      for (int64_t task = num_tasks - 1; task >= 0; --task) body(task);
    });
    const AllResults reversed = run_all(*backend, DType::kFloat32);
    set_parallel_for({});
    expect_same_bits(results, reversed);
  }
}

}  // namespace
}  // namespace parallax::testing
