// Seeded random numbers that are the same on every machine and compiler.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace parallax::mad {

/// SplitMix64: a counter through a mixing function. The standard library's distributions differ
/// between implementations, so the uniform draw is here too.
class Random {
 public:
  /// Independent streams for all pairs of seed and stream.
  Random(uint64_t seed, uint64_t stream) : state_(mix(mix(seed) ^ (stream + kIncrement))) {}

  uint64_t next() { return mix(state_ += kIncrement); }

  /// Uniform in [0, bound), bound >= 1; unbiased: draws from an incomplete last block are repeated.
  uint64_t below(uint64_t bound) {
    const uint64_t first_fair = -bound % bound;
    for (;;)
      if (const uint64_t value = next(); value >= first_fair) return value % bound;
  }

 private:
  static constexpr uint64_t kIncrement = 0x9e3779b97f4a7c15;

  static uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
  }

  uint64_t state_;
};

}  // namespace parallax::mad
