// Operands of the products of bfloat16 tiles with fp32 sums that the matrix kernels are made of.
//
// A tile has 16 rows of 64 bytes. C[16][16] fp32 += A[16][32] B[32][16] with A row-major and B in
// pairs: row k of B holds (B[2k][n], B[2k + 1][n]) for each n.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/rows.h"

namespace parallax::cpu {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;          // inner dimension of one product
constexpr int kTileElements = 16 * 32;  // 16-bit numbers of a tile

PLX_INLINE int matrix_dim(int head_dim) {
  return (head_dim + kTileDepth - 1) / kTileDepth * kTileDepth;
}

/// Where a [32][32] block of C lies: two tiles down, 16 columns each at `left` and `right`.
struct SumBlock {
  float *left, *right;
  int64_t stride;  // floats from row to row
};

/// Tiles of one factor: tile k of the upper (left) half at first + k * step, of the lower (right)
/// half at second + k * step.
struct TilePairs {
  const uint16_t *first, *second;
  int64_t step;
};

}  // namespace
}  // namespace parallax::cpu
