// A pseudo-random order of many items without storing it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace parallax::train {

/// A bijection of [0, size), fixed by `key`, in constant memory: a Feistel network on the next
/// power of four, repeated until the result lies below `size` (fewer than 4 steps on average). The
/// same on every machine.
class Permutation {
 public:
  /// size in [1, 2^62].
  Permutation(int64_t size, uint64_t key);
  int64_t operator()(int64_t idx) const;

 private:
  uint64_t network(uint64_t value) const;

  uint64_t size_, key_;
  int half_bits_ = 1;
};

}  // namespace parallax::train
