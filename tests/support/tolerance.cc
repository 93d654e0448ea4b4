// SPDX-License-Identifier: Apache-2.0
#include "support/tolerance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

namespace parallax::testing {

double unit_in_last_place(DType dtype, double value) {
  int digits = 53, min_exponent = -1021;  // of frexp
  if (dtype == DType::kFloat32) digits = 24, min_exponent = -125;
  if (dtype == DType::kBFloat16) digits = 8, min_exponent = -125;
  if (dtype == DType::kFloat16) digits = 11, min_exponent = -13;
  int exponent = 0;
  std::frexp(value, &exponent);
  return std::ldexp(1.0, std::max(exponent, min_exponent) - digits);
}

Verdict judge(const Comparison& comparison) {
  const auto& [tensor, dtype, result, truth, plain] = comparison;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (result.size() != truth.size()) return {kInfinity, std::string(tensor) + ": wrong size"};
  double largest = 0.0;
  size_t worst = 0;
  for (size_t idx = 0; idx < truth.size(); ++idx) {
    if (std::isfinite(truth[idx])) largest = std::max(largest, std::abs(truth[idx]));
    if (distance(result[idx], truth[idx]) > distance(result[worst], truth[worst])) worst = idx;
  }
  const Errors error = errors_of(result, truth);
  if (error.max == 0.0) return {};
  const double slack = 2.0 * unit_in_last_place(dtype, largest);
  const double max_allowed = 2.0 * plain.max + slack;
  const double rms_allowed = 2.0 * plain.rms + slack;
  std::ostringstream message;
  message << tensor << " (" << name(dtype) << "): max error " << error.max << " (allowed "
          << max_allowed << "), rms " << error.rms << " (allowed " << rms_allowed << "), worst at "
          << worst << " of " << truth.size() << ": got " << result[worst] << ", truth "
          << truth[worst];
  return {error.rms <= rms_allowed ? error.max / max_allowed : kInfinity, message.str()};
}

void judge_forward(DType dtype, const ForwardValues& result, const ForwardValues& truth,
                   const ForwardErrors& plain, const std::string& context,
                   std::vector<Verdict>& verdicts) {
  const auto add = [&](Comparison comparison) {
    verdicts.push_back(judge(comparison));
    verdicts.back().message.insert(0, context + ": ");
  };
  add({"out", dtype, result.out, truth.out, plain.out});
  add({"out_softmax", dtype, result.out_softmax, truth.out_softmax, plain.out_softmax});
  add({"lse", DType::kFloat32, result.lse, truth.lse, plain.lse});
  add({"t_mean", DType::kFloat32, result.t_mean, truth.t_mean, plain.t_mean});
}

void judge_gradients(DType dtype, const GradientValues& result, const GradientValues& truth,
                     const GradientErrors& plain, const std::string& context,
                     std::vector<Verdict>& verdicts) {
  const auto add = [&](Comparison comparison) {
    verdicts.push_back(judge(comparison));
    verdicts.back().message.insert(0, context + ": ");
  };
  add({"dq", dtype, result.dq, truth.dq, plain.dq});
  add({"dr", dtype, result.dr, truth.dr, plain.dr});
  add({"dk", dtype, result.dk, truth.dk, plain.dk});
  add({"dv", dtype, result.dv, truth.dv, plain.dv});
}

void expect_right(const std::function<std::vector<Verdict>(int num_orders)>& judge) {
  const auto is_right = [](const Verdict& verdict) { return verdict.excess <= 1.0; };
  std::vector<Verdict> verdicts = judge(kFewOrders);
  if (std::all_of(verdicts.begin(), verdicts.end(), is_right)) return;
  verdicts = judge(kManyOrders);
  for (const Verdict& verdict : verdicts)
    if (!is_right(verdict)) ADD_FAILURE() << verdict.message;
}

}  // namespace parallax::testing
