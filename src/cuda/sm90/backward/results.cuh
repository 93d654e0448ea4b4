// From a consumer's sums to the rows of the results.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/ptx/registers.cuh"
#include "cuda/sm90/backward/config.h"
#include "cuda/sm90/backward/kernel.h"
#include "cuda/sm90/tile.cuh"
#include "cuda/sm90/write_row.cuh"

namespace parallax::cuda::sm90 {

/// A row of a tile, which may lie beyond the last, and the first of the columns that a consumer has
/// sums of.
template <class Pass>
struct GradientRow {
  const Tile& tile;
  int row, first_column;

  /// Writes factor times the half of a thread's sums that is of this row. False if any of what was
  /// written is a NaN or an infinity.
  __device__ __forceinline__ bool write(const Operand<void>& result,
                                        const float (&sums)[Pass::Config::kSumColumns / 2],
                                        int half, float factor) const {
    using Element = typename Pass::Element;
    const bool exists = row < (Pass::kKeys ? tile.num_keys : tile.num_queries);
    const int64_t token = (Pass::kKeys ? tile.key_row : tile.query_row) + row;
    auto* const target = static_cast<Element*>(result.data) + tile.batch * result.batch_stride +
                         token * result.token_stride + tile.head * result.head_stride +
                         first_column;
    uint32_t not_finite = 0;
    const auto word = [&](int b) {
      const uint32_t pair = ptx::pack_pair<Element>(__fmul_rn(sums[4 * b + 2 * half], factor),
                                                    __fmul_rn(sums[4 * b + 2 * half + 1], factor));
      not_finite = ptx::add_zero_times<Element>(pair, not_finite);
      return pair;
    };
    constexpr int kColumns = Pass::Config::kSumColumns, kRest = Pass::kHeadDim % kColumns;
    if (kRest > 0 && first_column > 0)
      write_row_words<kRest>(target, exists, word);
    else
      write_row_words<kColumns>(target, exists, word);
    return !exists || (not_finite & 0x7fff7fff) == 0;
  }
};

}  // namespace parallax::cuda::sm90
