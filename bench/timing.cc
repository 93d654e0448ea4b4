// SPDX-License-Identifier: Apache-2.0
#include "timing.h"

#include <algorithm>
#include <chrono>

namespace parallax::bench {
namespace {

using Clock = std::chrono::steady_clock;

/// Seconds. What the call before left in the caches matters to shorter calls.
constexpr double kShortCall = 0.05;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Timing summarise(std::vector<double> seconds) {
  std::ranges::sort(seconds);
  const auto quantile_ms = [&](double fraction) {
    const auto last = static_cast<double>(seconds.size() - 1);
    return 1e3 * seconds[static_cast<size_t>(fraction * last + 0.5)];
  };
  return {.median_ms = quantile_ms(0.5),
          .low_ms = quantile_ms(0.25),
          .high_ms = quantile_ms(0.75),
          .count = static_cast<int>(seconds.size())};
}

}  // namespace

std::vector<Timing> time_in_turn(const std::vector<std::function<void()>>& candidates,
                                 const TimingOptions& options) {
  std::vector<std::vector<double>> seconds(candidates.size());
  const auto time_call = [&](size_t idx) {
    const auto begin = Clock::now();
    candidates[idx]();
    return seconds_since(begin);
  };
  std::vector<double> last_seconds;
  for (size_t idx = 0; idx < candidates.size(); ++idx) last_seconds.push_back(time_call(idx));
  const auto start = Clock::now();
  for (int round = 0; round < options.min_rounds || seconds_since(start) < options.seconds; ++round)
    for (size_t idx = 0; idx < candidates.size(); ++idx) {
      if (last_seconds[idx] < kShortCall) time_call(idx);
      seconds[idx].push_back(last_seconds[idx] = time_call(idx));
    }
  std::vector<Timing> timings;
  for (std::vector<double>& samples : seconds) timings.push_back(summarise(std::move(samples)));
  return timings;
}

}  // namespace parallax::bench
