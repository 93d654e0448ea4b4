// See permutation.h.
// SPDX-License-Identifier: Apache-2.0
#include "train/permutation.h"

#include "io/hash.h"
#include "parallax/error.h"

namespace parallax::train {
namespace {

// Four rounds give pseudo-random orders by the theory (Luby and Rackoff) for long halves; the
// halves of small sets have a few bits only, so a few more.
constexpr uint64_t kNumRounds = 8;

}  // namespace

Permutation::Permutation(int64_t size, uint64_t key)
    : size_(static_cast<uint64_t>(size)), key_(io::mix64(key + 1)) {
  PLX_CHECK(size >= 1 && size <= int64_t{1} << 62, "a permutation needs 1 to 2^62 items, given ",
            size);
  while (uint64_t{1} << (2 * half_bits_) < size_) ++half_bits_;
}

uint64_t Permutation::network(uint64_t value) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_, right = value & mask;
  for (uint64_t round = 0; round < kNumRounds; ++round) {
    const uint64_t mixed = io::mix64(io::mix64(key_ + round) + right) & mask;
    const uint64_t new_right = left ^ mixed;
    left = right;
    right = new_right;
  }
  return left << half_bits_ | right;
}

int64_t Permutation::operator()(int64_t idx) const {
  uint64_t value = network(static_cast<uint64_t>(idx));
  while (value >= size_) value = network(value);
  return static_cast<int64_t>(value);
}

}  // namespace parallax::train
