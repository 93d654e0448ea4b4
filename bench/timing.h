// Times several ways to do the same thing, side by side.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <vector>

namespace parallax::bench {

struct Timing {
  double median_ms = 0.0;
  double low_ms = 0.0, high_ms = 0.0;  ///< quartiles
  int count = 0;
};

struct TimingOptions {
  double seconds = 1.0;  ///< for all of them together, and at least min_rounds
  int min_rounds = 5;
};

/// Runs all candidates in turn, round after round, after one round that is not counted: whatever
/// else the machine does meets them alike. A short call follows another of its own, not counted, so
/// that each finds the caches as it leaves them itself.
std::vector<Timing> time_in_turn(const std::vector<std::function<void()>>& candidates,
                                 const TimingOptions& options);

}  // namespace parallax::bench
