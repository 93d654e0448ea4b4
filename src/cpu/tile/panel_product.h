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

enum class Sums { kSet, kAdd };

/// Rows in memory, `stride` floats apart.
template <typename Number>
struct Rows {
  Number* data;
  int64_t stride;
};
using FloatRows = Rows<const float>;

struct ProductSize {
  int64_t rows, depth;
};

/// C[kRows][kVectors vectors] (+)= A B over size.depth.
/// A B is summed from zero and then added to C in one step. Term by term, each term would be
/// rounded to the spacing of numbers at C: with C = 36 after the first tile and 4000 terms to come,
/// that was an error of 1.7e-4 in dk, the same in any order of the terms.
template <Factor kFactor, Sums kSums, int kRows, int kVectors>
PLX_INLINE void product_block(Rows<float> c, FloatRows a, FloatRows b, int64_t depth) {
  using F = Floats<kVectorFloats>;
  F sums[kRows][kVectors];
#pragma GCC unroll 24
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) sums[m][n] = F{};
  for (int64_t k = 0; k < depth; ++k) {
    F row[kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) row[n] = load<F>(b.data + k * b.stride + n * kVectorFloats);
#pragma GCC unroll 24
    for (int m = 0; m < kRows; ++m) {
      const float factor =
          kFactor == Factor::kByColumns ? a.data[k * a.stride + m] : a.data[m * a.stride + k];
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n)
        sums[m][n] = multiply_add(row[n], splat<kVectorFloats>(factor), sums[m][n]);
    }
  }
#pragma GCC unroll 24
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      float* const target = c.data + m * c.stride + n * kVectorFloats;
      store(target, kSums == Sums::kAdd ? load<F>(target) + sums[m][n] : sums[m][n]);
    }
}

/// Blocks of kRows rows, then what is left in blocks of half as many.
template <Factor kFactor, Sums kSums, int kRows, int kVectors>
PLX_INLINE void product_rows(Rows<float> c, FloatRows a, FloatRows b, ProductSize size) {
  const int64_t a_step = kFactor == Factor::kByColumns ? 1 : a.stride;
  for (; size.rows >= kRows; size.rows -= kRows) {
    product_block<kFactor, kSums, kRows, kVectors>(c, a, b, size.depth);
    c.data += kRows * c.stride;
    a.data += kRows * a_step;
  }
  if constexpr (kRows > 1) {
    if (size.rows > 0) product_rows<kFactor, kSums, kRows / 2, kVectors>(c, a, b, size);
  }
}

/// Blocks of kVectors vectors of the lanes, then what is left in blocks of half as many.
template <Factor kFactor, Sums kSums, int kVectors>
PLX_INLINE void product(Rows<float> c, FloatRows a, FloatRows b, ProductSize size, int64_t lanes) {
  constexpr int kRows = kAccumulators / kVectors < 12 ? kAccumulators / kVectors : 12;
  constexpr int kBlockLanes = kVectors * kVectorFloats;
  for (; lanes >= kBlockLanes; lanes -= kBlockLanes) {
    product_rows<kFactor, kSums, kRows, kVectors>(c, a, b, size);
    c.data += kBlockLanes;
    b.data += kBlockLanes;
  }
  if constexpr (kVectors > 1) {
    if (lanes > 0) product<kFactor, kSums, kVectors / 2>(c, a, b, size, lanes);
  }
}

template <int kLanes>
constexpr int kBlockVectors =
    kLanes / kVectorFloats < kMaxBlockVectors ? kLanes / kVectorFloats : kMaxBlockVectors;

/// c[m][lane] = sum_k a[m][k] b[k][lane] of panels with kLanes lanes.
template <int kLanes>
__attribute__((noinline)) void set_product(float* c, FloatRows a, const float* b,
                                           ProductSize size) {
  product<Factor::kByRows, Sums::kSet, kBlockVectors<kLanes>>({c, kLanes}, a, {b, kLanes}, size,
                                                              kLanes);
}

/// c[m][lane] += sum_k a[k][m] b[k][lane] of panels with kLanes lanes.
template <int kLanes>
__attribute__((noinline)) void add_transposed_product(float* c, FloatRows a, const float* b,
                                                      ProductSize size) {
  product<Factor::kByColumns, Sums::kAdd, kBlockVectors<kLanes>>({c, kLanes}, a, {b, kLanes}, size,
                                                                 kLanes);
}

/// c[m][lane] (+)= sum_k a[m][k] b[k][lane] for any number of lanes, a multiple of kPadding.
template <Sums kSums>
__attribute__((noinline)) void row_product(Rows<float> c, FloatRows a, FloatRows b,
                                           ProductSize size, int64_t lanes) {
  product<Factor::kByRows, kSums, kMaxBlockVectors>(c, a, b, size, lanes);
}

}  // namespace
}  // namespace parallax::cpu
