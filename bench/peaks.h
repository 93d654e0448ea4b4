// What the machine can do at best, measured: the denominators of every share of the limit.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <optional>

namespace parallax::bench {

/// Rates of all threads together.
struct Limits {
  double fma_gflops = 0.0;                  ///< fp32 multiply-add, widest vectors, registers only
  std::optional<double> amx_gflops{};       ///< bfloat16 tile products, registers only
  std::optional<double> bf16_dot_gflops{};  ///< AVX-512's bfloat16 dot products, registers only
  double read_gbytes = 0.0;                 ///< a sweep over memory far larger than the caches

  /// The fastest way to multiply bfloat16.
  double bf16_gflops() const {
    return std::max({fma_gflops, amx_gflops.value_or(0.0), bf16_dot_gflops.value_or(0.0)});
  }
};

/// Takes about half a second for each. `num_threads` threads run at once.
Limits measure_limits(int num_threads);

}  // namespace parallax::bench
