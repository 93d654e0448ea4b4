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

/// Fails the test unless every verdict on the inputs of `seed` is right. The largest error of a
/// tensor often hangs on one score, so that kernel and plain loop are two draws from one
/// distribution, and one draw in about 10^4 is more than twice the other. Such a near miss (the rms
/// right, the maximum less than twice what is allowed) is decided by two further draws, both of
/// which must be right.
void expect_right(uint64_t seed, const std::function<std::vector<Verdict>(uint64_t)>& draw);

/// The distance from |value| to the next larger number of `dtype`.
double unit_in_last_place(DType dtype, double value);

}  // namespace parallax::testing
