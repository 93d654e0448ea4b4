// What a result is compared with: float64 truth from the reference backend, and the plain loop in
// the tested dtype, whose error sets the tolerance. Both work on one canonical form of a call:
// packed sequences in float64.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "parallax/attention.h"

namespace parallax::testing {

struct SequenceLengths {
  int64_t num_queries = 0;
  int64_t num_keys = 0;
};

/// Any forward, backward or decode call: inputs are the exact values that the backend got.
///   q, r, d_out  [total_q, Hq, D]      k, v  [total_k, Hkv, D]
struct PackedProblem {
  std::vector<SequenceLengths> sequences{};
  int64_t num_heads_q = 1, num_heads_kv = 1, head_dim = 1;
  AttentionOptions options{};
  std::vector<double> q{}, r{}, k{}, v{}, d_out{};

  int64_t total_queries() const;
  int64_t total_keys() const;
  double scale() const;
};

/// out, out_softmax [total_q, Hq, D]; lse, t_mean [total_q, Hq].
struct ForwardValues {
  std::vector<double> out{}, out_softmax{}, lse{}, t_mean{};
};

struct GradientValues {
  std::vector<double> dq{}, dr{}, dk{}, dv{};
};

ForwardValues true_forward(const PackedProblem& problem);
GradientValues true_backward(const PackedProblem& problem, const ForwardValues& forward);

/// Largest and root mean square distance from the truth.
struct Errors {
  double max = 0.0;
  double rms = 0.0;
};

struct ForwardErrors {
  Errors out{}, out_softmax{}, lse{}, t_mean{};
};

struct GradientErrors {
  Errors dq{}, dr{}, dk{}, dv{};
};

/// Errors of the plain loop: scores, sums and accumulation in fp32; p, p t and, backward, the
/// gradients of the scores rounded to `dtype`; the result rounded once. Backward starts from
/// `saved`. Often a single score decides the largest error, so that one order of the operations is
/// one random draw: the loop runs in `num_orders` orders, which differ in rounding only, and the
/// largest of their errors counts.
ForwardErrors plain_errors(const PackedProblem& problem, const ForwardValues& truth, DType dtype,
                           int num_orders);
GradientErrors plain_errors(const PackedProblem& problem, const GradientValues& truth,
                            const ForwardValues& saved, DType dtype, int num_orders);

/// Infinite for a NaN or an infinity that the truth does not have.
double distance(double value, double truth);
Errors errors_of(const std::vector<double>& values, const std::vector<double>& truth);

/// The values as a forward call in `dtype` would have stored them (lse and t_mean in fp32).
ForwardValues rounded(const ForwardValues& values, DType dtype);

}  // namespace parallax::testing
