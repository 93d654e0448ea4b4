// Products of bfloat16 tiles by AVX-512's dot product of pairs (vdpbf16ps): a row of B is one
// register, and a word of A, two numbers of one row, is broadcast against it. Like AMX it takes
// subnormal numbers for 0.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/matrix_operands.h"

namespace parallax::cpu {
namespace {

struct TileSession {
  TileSession() {}  // no state: not trivial, so that a session may be an unused name here too
};

/// 16 / kColumns rows and 16 kColumns columns of C (+)= A B: c and a.first are the strip's first
/// rows, a.second is unused. 16 sums hide the latency of four to six cycles at two per cycle.
template <Sums kSums, int kColumns>
PLX_INLINE void strip_product(const SumBlock& c, const TilePairs& a, const TilePairs& b,
                              int64_t depth) {
  using F = Floats<16>;
  constexpr int kRows = 16 / kColumns;
  F sums[kColumns][kRows];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    sums[0][row] = kSums == Sums::kAdd ? load<F>(c.left + row * c.stride) : F{};
    if constexpr (kColumns == 2)
      sums[1][row] = kSums == Sums::kAdd ? load<F>(c.right + row * c.stride) : F{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const uint16_t* const factors = a.first + k * a.step;
    for (int pair = 0; pair < kTileDepth / 2; ++pair) {
      const int64_t at = k * b.step + pair * kTileDepth;
      const auto left = load<__m512bh>(b.first + at);
      __m512bh right{};
      if constexpr (kColumns == 2) right = load<__m512bh>(b.second + at);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const auto word = reinterpret_cast<__m512bh>(
            _mm512_set1_epi32(load<int32_t>(factors + row * kTileDepth + 2 * pair)));
        sums[0][row] = _mm512_dpbf16_ps(sums[0][row], word, left);
        if constexpr (kColumns == 2) sums[1][row] = _mm512_dpbf16_ps(sums[1][row], word, right);
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    store(c.left + row * c.stride, sums[0][row]);
    if constexpr (kColumns == 2) store(c.right + row * c.stride, sums[1][row]);
  }
}

/// Both halves of C's 32 rows, strip by strip.
template <Sums kSums, int kColumns>
PLX_INLINE void strips_product(const SumBlock& c, const TilePairs& a, const TilePairs& b,
                               int64_t depth) {
  constexpr int kRows = 16 / kColumns;
  for (int row = 0; row < 2 * kTileRows; row += kRows) {
    const uint16_t* const half = row < kTileRows ? a.first : a.second;
    strip_product<kSums, kColumns>(
        {c.left + row * c.stride, kColumns == 2 ? c.right + row * c.stride : nullptr, c.stride},
        {half + row % kTileRows * kTileDepth, nullptr, a.step}, b, depth);
  }
}

/// C (+)= A B over `depth` tiles.
template <Sums kSums>
PLX_INLINE void tile_block_product(const SumBlock& c, const TilePairs& a, const TilePairs& b,
                                   int64_t depth) {
  strips_product<kSums, 2>(c, a, b, depth);
}

/// The same for 16 columns: C[32][16] = A B; b.second and c.right are unused.
PLX_INLINE void tile_column_product(const SumBlock& c, const TilePairs& a, const TilePairs& b,
                                    int64_t depth) {
  strips_product<Sums::kSet, 1>(c, a, b, depth);
}

/// C[16][16] += A B of single tiles.
PLX_INLINE void tile_add_product(float* c, const uint16_t* a, const uint16_t* b) {
  strip_product<Sums::kAdd, 1>({c, nullptr, kTileRows}, {a, nullptr, 0}, {b, nullptr, 0}, 1);
}

}  // namespace
}  // namespace parallax::cpu
