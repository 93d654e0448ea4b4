// From an accumulator of wgmma to a row in memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace parallax::cuda::sm90 {

/// Word x of lane l of a quad goes to word l of lane x.
__device__ __forceinline__ uint4 transpose_quad(const uint32_t (&words)[4]) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  const auto exchange = [](bool keep_low, uint32_t& low, uint32_t& high, int lanes) {
    const uint32_t received = __shfl_xor_sync(~0u, keep_low ? high : low, lanes);
    (keep_low ? high : low) = received;
  };
  uint32_t a = words[0], b = words[1], c = words[2], d = words[3];
  exchange(!odd, a, b, 1);
  exchange(!odd, c, d, 1);
  exchange(!upper, a, c, 2);
  exchange(!upper, b, d, 2);
  return {a, b, c, d};
}

/// Writes one row, 16 bytes at a time. word(x): columns 8 x + 2 (lane of the quad) and the next.
template <int kHeadDim, typename Word>
__device__ __forceinline__ void write_row_words(void* row, bool exists, Word word) {
  auto* const target = static_cast<uint4*>(row) + threadIdx.x % 4;
#pragma unroll
  for (int part = 0; part < kHeadDim / 32; ++part) {
    const uint32_t words[] = {word(4 * part), word(4 * part + 1), word(4 * part + 2),
                              word(4 * part + 3)};
    const uint4 packed = transpose_quad(words);
    if (exists) target[part * 4] = packed;
  }
}

}  // namespace parallax::cuda::sm90
