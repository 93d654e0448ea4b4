// Rows of the other kind that are not finite, in tiles that meet them in part: see not_finite.cuh.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/backward/loader.cuh"
#include "cuda/sm90/not_finite.cuh"

namespace parallax::cuda::sm90 {

/// Both consumers, once for each part of each step.
template <class Pass>
__device__ __forceinline__ void clear_tiles(uint32_t tiles, int bytes) {
  constexpr int kBarrier = 1;
  clear_not_finite<typename Pass::Element>(tiles, bytes, kBarrier);
}

template <class Pass>
__device__ __forceinline__ bool is_bad_row(const Operand<const void>& operand, int64_t batch,
                                           int64_t token, int64_t head) {
  using Element = typename Pass::Element;
  const auto* const pairs = reinterpret_cast<const uint32_t*>(
      static_cast<const Element*>(operand.data) + batch * operand.batch_stride +
      token * operand.token_stride + head * operand.head_stride);
  uint32_t mask = 0;
  for (int idx = 0; idx < Pass::kHeadDim / 2; ++idx) mask |= not_finite_mask<Element>(pairs[idx]);
  return mask != 0;
}

/// Whether a row of the tile meets one with a NaN or an infinity: it must not be silent.
template <class Pass>
__device__ __forceinline__ bool meets_bad_row(const PassParams& params, const Tile& tile, int row) {
  const BackwardCall& call = params.call;
  const AttentionCall& attention = call.attention;
  if (row >= (Pass::kKeys ? tile.num_keys : tile.num_queries)) return false;
  const RowSpan span = visible_rows<Pass::kRows>(attention, tile, row);
  bool bad = false;
  if constexpr (Pass::kKeys) {
    for (int head = tile.head * attention.group; head < (tile.head + 1) * attention.group; ++head)
      for (int query = span.begin; query < span.end; ++query)
        for (const Operand<const void>* operand : {&attention.q, &attention.r, &call.d_out})
          bad |= is_bad_row<Pass>(*operand, tile.batch, tile.query_row + query, head);
  } else {
    for (int key = span.begin; key < span.end; ++key)
      for (const Operand<const void>* operand : {&attention.k, &attention.v})
        bad |=
            is_bad_row<Pass>(*operand, tile.batch, tile.key_row + key, tile.head / attention.group);
  }
  return bad;
}

}  // namespace parallax::cuda::sm90
