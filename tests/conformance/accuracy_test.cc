// Errors that the plain loop has and a kernel need not have, so that the derived tolerance cannot
// see them: each input here has a truth at hand and a bound that the plain way of adding breaks.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "support/decode_case.h"
#include "support/tolerance.h"

namespace parallax::testing {
namespace {

/// One term of 64, and after it kTerms - 1 terms of a quarter of the distance from 64 to the next
/// float32: added one by one to 64 they leave no trace, whatever their order among themselves.
/// Summed by tiles, only those in the tile of the large term may be lost.
constexpr int64_t kTerms = 4096;
constexpr double kLarge = 64.0, kSmall = 0x1p-19;
constexpr double kSum = kLarge + (kTerms - 1) * kSmall;
constexpr double kAllowed = 128 * kSmall + 0x1p-17;  // a tile of 128 terms, and the last rounding

std::vector<double> column(int64_t rows, size_t D, double first, double others) {
  std::vector<double> values(static_cast<size_t>(rows) * D);
  for (size_t idx = 0; idx < values.size(); idx += D) values[idx] = idx == 0 ? first : others;
  return values;
}

AttentionInputs zero_inputs(const AttentionCase& attention_case) {
  AttentionInputs inputs(attention_case, 1);
  for (HostTensor* tensor : {&inputs.q, &inputs.r, &inputs.k, &inputs.v, &inputs.d_out})
    for (int64_t idx = 0; idx < tensor->num_elements(); ++idx) tensor->set(idx, 0.0);
  return inputs;
}

void fill(HostTensor& tensor, const std::vector<double>& values) {
  for (size_t idx = 0; idx < values.size(); ++idx)
    tensor.set(static_cast<int64_t>(idx), values[idx]);
}

/// q = r = 0: the output is the mean of the values.
TEST(LongSums, OverKeysKeepTermsSmallerThanTheirRounding) {
  for (const int64_t num_queries : {1, 40}) {  // both row tiles
    AttentionInputs inputs =
        zero_inputs({.Tq = num_queries, .Tk = kTerms, .D = 4, .mask = Mask::kFull});
    fill(inputs.v, column(kTerms, 4, kLarge, kSmall));
    for (const auto& [label, backend] : tested_backends()) {
      const ForwardTensors result = run_forward(*backend, inputs);
      for (int64_t query = 0; query < num_queries; ++query)
        EXPECT_NEAR(result.out.get(query * 4) * kTerms, kSum, kAllowed) << label;
    }
  }
}

/// With one key, dv is the sum of d_out.
TEST(LongSums, OverQueriesInDvKeepTermsSmallerThanTheirRounding) {
  AttentionInputs inputs = zero_inputs({.Tq = kTerms, .Tk = 1, .D = 4, .mask = Mask::kFull});
  fill(inputs.d_out, column(kTerms, 4, kLarge, kSmall));
  for (const auto& [label, backend] : tested_backends()) {
    const ForwardValues saved = values_of(run_forward(*backend, inputs));
    EXPECT_NEAR(run_backward(*backend, inputs, saved).dv.get(0), kSum, kAllowed) << label;
  }
}

/// Two keys with k = 0, so that p = 1/2, t = 0 and a = 1, and v = (1, 0, 0, 0) and its opposite:
/// g = +-d_out[0] around a mean of 0, and dk of the second key is sum_i d_out_i[0] r_i / 2.
TEST(LongSums, OverQueriesInDkKeepTermsSmallerThanTheirRounding) {
  AttentionInputs inputs = zero_inputs({.Tq = kTerms, .Tk = 2, .D = 4, .mask = Mask::kFull});
  fill(inputs.d_out, column(kTerms, 4, 2.0 * kLarge, 2.0 * kSmall));
  fill(inputs.r, column(kTerms, 4, 1.0, 1.0));
  fill(inputs.v, {1.0, 0.0, 0.0, 0.0, -1.0});
  for (const auto& [label, backend] : tested_backends()) {
    const ForwardValues saved = values_of(run_forward(*backend, inputs));
    EXPECT_NEAR(run_backward(*backend, inputs, saved).dk.get(4), kSum, kAllowed) << label;
  }
}

/// Makes t exact in float32 whatever the order of its sum, with deviations of about 1.4: k is in
/// multiples of 1/8, r of 1/32. Coordinate 0 of k is 1 and of r is 0, where a test puts the shift.
void make_scores_exact(PackedProblem& problem) {
  for (double& value : problem.k) value = std::round(value * 8.0) / 8.0;
  for (double& value : problem.r) value = std::round(value * 8.0) / 32.0;
  const auto D = static_cast<size_t>(problem.head_dim);
  for (size_t idx = 0; idx < problem.k.size(); idx += D) problem.k[idx] = 1.0;
  for (size_t idx = 0; idx < problem.r.size(); idx += D) problem.r[idx] = 0.0;
}

/// A row constant in t does not change the output, and costs no accuracy: the shifted call is as
/// close to the truth as the plain loop is on the call without shift. Sums that are not centred
/// have terms 35 times as large there, and their error too.
void expect_no_cost(const PackedProblem& unshifted,
                    const std::function<ForwardTensors(const Backend&)>& run) {
  const ForwardValues truth = true_forward(unshifted);
  expect_right([&](int num_orders) {
    const ForwardErrors plain = plain_errors(unshifted, truth, DType::kFloat32, num_orders);
    std::vector<Verdict> verdicts;
    for (const auto& [label, backend] : tested_backends()) {
      const std::vector<double> out = run(*backend).out.values();
      verdicts.push_back(judge({"out", DType::kFloat32, out, truth.out, plain.out}));
      verdicts.back().message.insert(0, label + ": ");
    }
    return verdicts;
  });
}

TEST(Centring, AMeanOf50InTheCovarianceScoreCostsTheForwardNoAccuracy) {
  for (const int64_t num_queries : {3, 150}) {  // both row tiles
    SCOPED_TRACE("PLX_TEST_SEED=" + std::to_string(test_seed()));
    AttentionInputs inputs({.Tq = num_queries, .Tk = 150, .Hq = 2, .D = 32}, test_seed());
    make_scores_exact(inputs.problem);
    fill(inputs.k, inputs.problem.k);
    fill(inputs.r, inputs.problem.r);
    for (int64_t idx = 0; idx < inputs.r.num_elements(); idx += 32) inputs.r.set(idx, 50.0);
    expect_no_cost(inputs.problem, [&](const Backend& b) { return run_forward(b, inputs); });
  }
}

/// Long enough to be split: the parts have centres of their own.
TEST(Centring, AMeanOf50InTheCovarianceScoreCostsDecodeNoAccuracy) {
  SCOPED_TRACE("PLX_TEST_SEED=" + std::to_string(test_seed()));
  DecodeInputs inputs({.sequences = {{2, 1500}}, .Hq = 2, .D = 32}, test_seed());
  make_scores_exact(inputs.problem);
  fill(inputs.k_cache, inputs.problem.k);
  fill(inputs.r, inputs.problem.r);
  for (int64_t idx = 0; idx < inputs.r.num_elements(); idx += 32) inputs.r.set(idx, 50.0);
  expect_no_cost(inputs.problem, [&](const Backend& b) { return run_decode(b, inputs); });
}

}  // namespace
}  // namespace parallax::testing
