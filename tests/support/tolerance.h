// The derived tolerance: a result may be at most twice as far from the float64 truth as the plain
// loop in the same dtype is, plus two units in the last place of the largest truth. The rule holds
// for the largest error and for the root mean square.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "parallax/dtype.h"
#include "support/truth.h"

namespace parallax::testing {

/// One tensor of a result beside its truth and the plain loop's errors.
struct Comparison {
  const char* tensor;  // for messages
  DType dtype;         // in which the result is stored
  const std::vector<double>& result;
  const std::vector<double>& truth;
  const Errors& plain;
};

struct Verdict {
  /// Largest error over what is allowed: at most 1 is right. Infinite if the root mean square is
  /// too large, or for a NaN or infinity that the truth does not have.
  double excess = 0.0;
  /// Errors and what is allowed, the index of the largest error, and both values there.
  std::string message{};
};

Verdict judge(const Comparison& comparison);

/// Judges all tensors of a forward or decode call, or of a backward call. `context` starts each
/// message.
void judge_forward(DType dtype, const ForwardValues& result, const ForwardValues& truth,
                   const ForwardErrors& plain, const std::string& context,
                   std::vector<Verdict>& verdicts);
void judge_gradients(DType dtype, const GradientValues& result, const GradientValues& truth,
                     const GradientErrors& plain, const std::string& context,
                     std::vector<Verdict>& verdicts);

/// In how many orders of its operations the plain loop runs: few for every case, many for a result
/// that the few do not allow.
inline constexpr int kFewOrders = 3;
inline constexpr int kManyOrders = 24;

/// Fails the test unless every verdict of judge(kFewOrders), or else of judge(kManyOrders), is
/// right. The largest error of a tensor often hangs on one score: kernel and plain loop are draws
/// from one distribution, and about one draw in 10^4 is more than twice the largest of three.
/// Against the largest of 24, on the same inputs, that is far less likely.
///
/// Orders do not draw the error of a long sum over rows or keys anew: once such a sum has its size,
/// each term is rounded to the spacing of numbers there, so the error depends on the set of terms
/// and not on their order. A kernel that adds term by term is then as likely as the plain loop to
/// have the larger error, by any factor; kernels sum each tile from zero and have a tenth of it
/// (tests/conformance/accuracy_test.cc).
void expect_right(const std::function<std::vector<Verdict>(int num_orders)>& judge);

/// The distance from |value| to the next larger number of `dtype`.
double unit_in_last_place(DType dtype, double value);

}  // namespace parallax::testing
