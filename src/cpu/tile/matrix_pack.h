// Packs rows of bfloat16 in the orders in which the matrix unit takes them (kernels.h, PackedRows).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/matrix_unit.h"

namespace parallax::cpu {
namespace {

/// Where the rows of a block lie; null for those that count as zeros.
static void find_rows(const PackJob& job, const uint16_t** sources) {
  for (int idx = 0; idx < kPackedRows; ++idx) {
    const int64_t row = job.first_row + idx;
    const bool exists = row >= job.begin && row < job.end;
    const void* const source = !exists               ? nullptr
                               : job.keys != nullptr ? key_address(*job.keys, row)
                                                     : row_address(*job.rows, row, job.group);
    sources[idx] = static_cast<const uint16_t*>(source);
  }
}

/// 32 numbers of each row from `depth` on, of which `count` exist.
PLX_INLINE void load_block(const uint16_t* const* sources, int depth, int count,
                           uint16_t (*rows)[kTileDepth]) {
  constexpr size_t kBytes = kTileDepth * sizeof(uint16_t);
  for (int row = 0; row < kPackedRows; ++row) {
    if (sources[row] != nullptr && count == kTileDepth) {
      std::memcpy(rows[row], sources[row] + depth, kBytes);
      continue;
    }
    std::memset(rows[row], 0, kBytes);
    if (sources[row] != nullptr)
      std::memcpy(rows[row], sources[row] + depth, static_cast<size_t>(count) * sizeof(uint16_t));
  }
}

/// Bit i: row i holds a NaN or an infinity.
static uint32_t not_finite_rows(const uint16_t* const* sources, int head_dim) {
  uint32_t bits = 0;
  for (int row = 0; row < kPackedRows; ++row)
    for (int d = 0; sources[row] != nullptr && d < head_dim; ++d)
      if ((sources[row][d] & 0x7f80u) == 0x7f80u) bits |= 1u << row;
  return bits;
}

/// One block of rows -> whichever forms the job asks for.
static void pack_block(const PackJob& job) {
  const int padded = matrix_dim(job.head_dim);
  const uint16_t* sources[kPackedRows];
  find_rows(job, sources);
  uint16_t largest[kTileDepth] = {};  // magnitudes, of the rows' numbers d, d + 32, ...
  for (int depth = 0; depth < padded; depth += kTileDepth) {
    alignas(64) uint16_t rows[kPackedRows][kTileDepth];
    const int left = job.head_dim - depth;
    load_block(sources, depth, left < kTileDepth ? left : kTileDepth, rows);
    for (int row = 0; row < kPackedRows; ++row)
      for (int d = 0; d < kTileDepth; ++d) {
        const auto magnitude = static_cast<uint16_t>(rows[row][d] & 0x7fffu);
        largest[d] = magnitude > largest[d] ? magnitude : largest[d];
      }
    if (job.tiles != nullptr)
      for (int half = 0; half < 2; ++half)
        std::memcpy(job.tiles + (half * padded + depth) * kTileRows, rows[half * kTileRows],
                    kTileElements * sizeof(uint16_t));
    if (job.transposed == nullptr) continue;
    // Pairs of rows as words [16][32], then the words transposed: [32 of D][16 words].
    alignas(64) uint32_t words[kPackedRows / 2][kTileDepth];
    for (int pair = 0; pair < kPackedRows / 2; ++pair)
      for (int d = 0; d < kTileDepth; ++d)
        words[pair][d] = static_cast<uint32_t>(rows[2 * pair][d]) |
                         static_cast<uint32_t>(rows[2 * pair + 1][d]) << 16;
    auto* const target = reinterpret_cast<float*>(job.transposed + depth * kPackedRows);
    transpose(target, 16, reinterpret_cast<const float*>(words), kTileDepth, 16, kTileDepth);
  }
  bool all_finite = true;
  for (int d = 0; d < kTileDepth; ++d) all_finite &= largest[d] < 0x7f80u;
  *job.not_finite = all_finite ? 0u : not_finite_rows(sources, job.head_dim);
}

}  // namespace
}  // namespace parallax::cpu
