// The matrix products of all kernels. A panel is a [k][kLanes] array of floats with the tile's rows
// (or keys) in the lanes; the other factor is read one element at a time and broadcast. A block of
// C stays in registers over the whole inner dimension.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/vector.h"

namespace parallax::cpu {
namespace {

/// Whether element (m, k) of the broadcast factor lies at a[m * stride + k] or a[k * stride + m].
enum class Factor { kByRows, kByColumns };

/// Accumulators per block: 24 of AVX-512's 32 registers, 12 of the 16 of AVX2 and SSE.
constexpr int kAccumulators = PLX_VECTOR_BYTES == 64 ? 24 : 12;
constexpr int kMaxBlockVectors = PLX_VECTOR_BYTES == 64 ? 4 : 2;

/// C[kRows][kVectors vectors] (+)= A B over `depth`. By columns it accumulates, by rows it sets.
/// A B is summed from zero and then added to C in one step. Term by term, each term would be
/// rounded to the spacing of numbers at C: with C = 36 after the first tile and 4000 terms to come,
/// that was an error of 1.7e-4 in dk, the same in any order of the terms.
template <Factor kFactor, int kRows, int kVectors, int kLanes>
PLX_INLINE void product_block(float* c, const float* a, int64_t a_stride, const float* b,
                              int64_t depth) {
  using F = Floats<kVectorFloats>;
  F sums[kRows][kVectors];
#pragma GCC unroll 24
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) sums[m][n] = F{};
  for (int64_t k = 0; k < depth; ++k) {
    F row[kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) row[n] = load<F>(b + k * kLanes + n * kVectorFloats);
#pragma GCC unroll 24
    for (int m = 0; m < kRows; ++m) {
      const float factor =
          kFactor == Factor::kByColumns ? a[k * a_stride + m] : a[m * a_stride + k];
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n)
        sums[m][n] = multiply_add(row[n], splat<kVectorFloats>(factor), sums[m][n]);
    }
  }
#pragma GCC unroll 24
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      float* const target = c + m * kLanes + n * kVectorFloats;
      store(target, kFactor == Factor::kByColumns ? load<F>(target) + sums[m][n] : sums[m][n]);
    }
}

/// Blocks of kRows rows, then what is left in blocks of half as many.
template <Factor kFactor, int kRows, int kVectors, int kLanes>
PLX_INLINE void product_rows(float* c, const float* a, int64_t a_stride, const float* b,
                             int64_t rows, int64_t depth) {
  const int64_t a_step = kFactor == Factor::kByColumns ? 1 : a_stride;
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows)
    product_block<kFactor, kRows, kVectors, kLanes>(c + m * kLanes, a + m * a_step, a_stride, b,
                                                    depth);
  if constexpr (kRows > 1) {
    if (m < rows)
      product_rows<kFactor, kRows / 2, kVectors, kLanes>(c + m * kLanes, a + m * a_step, a_stride,
                                                         b, rows - m, depth);
  }
}

template <Factor kFactor, int kLanes>
PLX_INLINE void product(float* c, const float* a, int64_t a_stride, const float* b, int64_t rows,
                        int64_t depth) {
  constexpr int kPanelVectors = kLanes / kVectorFloats;
  constexpr int kVectors = kPanelVectors < kMaxBlockVectors ? kPanelVectors : kMaxBlockVectors;
  constexpr int kRows = kAccumulators / kVectors < 12 ? kAccumulators / kVectors : 12;
  for (int n = 0; n < kLanes; n += kVectors * kVectorFloats)
    product_rows<kFactor, kRows, kVectors, kLanes>(c + n, a, a_stride, b + n, rows, depth);
}

/// c[m][lane] = sum_k a[m][k] b[k][lane] for m < rows, k < depth.
template <int kLanes>
__attribute__((noinline)) void set_product(float* c, const float* a, int64_t a_stride,
                                           const float* b, int64_t rows, int64_t depth) {
  product<Factor::kByRows, kLanes>(c, a, a_stride, b, rows, depth);
}

/// c[m][lane] += sum_k a[k][m] b[k][lane] for m < rows, k < depth.
template <int kLanes>
__attribute__((noinline)) void add_transposed_product(float* c, const float* a, int64_t a_stride,
                                                      const float* b, int64_t rows, int64_t depth) {
  product<Factor::kByColumns, kLanes>(c, a, a_stride, b, rows, depth);
}

}  // namespace
}  // namespace parallax::cpu
