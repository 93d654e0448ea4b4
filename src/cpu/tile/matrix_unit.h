// The matrix unit: products of bfloat16 tiles, of whichever instruction set the including unit asks
// for, and the orders of its operands.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#ifdef PLX_DOT_PRODUCTS
#include "cpu/tile/dot_products.h"
#else
#include "cpu/tile/amx_products.h"
#endif

namespace parallax::cpu {
namespace {

/// A row-major tile [16][32] as the other factor: its 16 rows become columns. Words of two 16-bit
/// numbers are transposed.
PLX_INLINE void transpose_tile(uint16_t* target, const uint16_t* source) {
  for (int row = 0; row < 16; row += kVectorFloats)
    for (int column = 0; column < 16; column += kVectorFloats)
      transpose_block<kVectorFloats>(reinterpret_cast<float*>(target) + column * 16 + row, 16,
                                     reinterpret_cast<const float*>(source) + row * 16 + column,
                                     16);
}

/// 16 columns of a tile of pairs of rows: `even` and `odd` are lanes of two rows, rounded to
/// bfloat16. Adds both, as rounded, to `sums`.
template <int kWidth>
PLX_INLINE void store_pair(uint16_t* target, Floats<kWidth> even, Floats<kWidth> odd,
                           Floats<kWidth>& sums) {
#if defined(__AVX512BF16__)
  alignas(64) static constexpr uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i pairs = _mm512_permutexvar_epi16(
      _mm512_load_si512(kInterleave), reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even)));
  _mm512_storeu_si512(target, pairs);
  const __m512i ones = _mm512_set1_epi16(0x3f80);
  sums =
      _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(ones));
#else
  for (int lane = 0; lane < kWidth; ++lane) {
    target[2 * lane] = to_bfloat16(even[lane]);
    target[2 * lane + 1] = to_bfloat16(odd[lane]);
    sums[lane] += from_bfloat16(target[2 * lane]) + from_bfloat16(target[2 * lane + 1]);
  }
#endif
}

/// [32 rows][16 columns] fp32 with `stride` -> one tile of pairs of rows, rounded to bfloat16.
PLX_INLINE void round_to_pairs(uint16_t* target, const float* source, int64_t stride) {
  constexpr int kWidth = kVectorFloats;
  using F = Floats<kWidth>;
  F ignored{};
  for (int row = 0; row < kTileDepth; row += 2)
    for (int lane = 0; lane < kTileRows; lane += kWidth)
      store_pair<kWidth>(target + row * kTileRows + 2 * lane, load<F>(source + row * stride + lane),
                         load<F>(source + (row + 1) * stride + lane), ignored);
}

}  // namespace
}  // namespace parallax::cpu
