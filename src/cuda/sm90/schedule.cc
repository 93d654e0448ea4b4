// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/schedule.h"

#include "cuda/device/tile_slots.cuh"

namespace parallax::cuda::sm90 {
namespace {

bool is_packed(const AttentionCall& call) { return call.sequences.cu_seqlens_q != nullptr; }

int64_t num_heads(const AttentionCall& call, TileRows rows) {
  const int heads = rows == TileRows::kQueries ? call.num_heads_q : call.num_heads_kv;
  return is_packed(call) ? heads : call.sequences.num_sequences * heads;
}

/// Of each head; packed: the slots of all sequences.
int64_t num_blocks(const AttentionCall& call, TileRows rows, int rows_per_tile) {
  const SequenceTable& table = call.sequences;
  const bool queries = rows == TileRows::kQueries;
  return make_tile_slots(queries ? table.cu_seqlens_q : table.cu_seqlens_k,
                         is_packed(call) ? table.num_sequences : 1,
                         queries ? table.num_queries : table.num_keys, /*rows_per_token=*/1,
                         rows_per_tile)
      .count;
}

/// Heads whose other operands stay in the second-level cache while their tiles are computed: k and
/// v for tiles of queries; q, r and d_out of the group for tiles of keys. Measured with 50 MB, for
/// the former: more than 16 heads or 32 MB are slower.
int bundle_of(const AttentionCall& call, TileRows rows, int64_t l2_bytes) {
  constexpr int kMaxBundle = 16, kElementBytes = 2;
  const int64_t row_bytes = kElementBytes * call.head_dim;
  const int64_t head_bytes = rows == TileRows::kQueries
                                 ? 2 * row_bytes * call.sequences.num_keys / call.group
                                 : 3 * row_bytes * call.sequences.num_queries * call.group;
  int bundle = 1;
  while (bundle < kMaxBundle && 2 * bundle <= num_heads(call, rows) &&
         2 * bundle * head_bytes <= l2_bytes / 8 * 5)
    bundle *= 2;
  return bundle;
}

}  // namespace

int64_t num_tiles(const AttentionCall& call, TileRows rows, int rows_per_tile) {
  return num_heads(call, rows) * num_blocks(call, rows, rows_per_tile);
}

TileSchedule make_schedule(const AttentionCall& call, TileRows rows, int rows_per_tile,
                           int64_t l2_bytes) {
  return {.num_tiles = static_cast<int>(num_tiles(call, rows, rows_per_tile)),
          .num_heads = static_cast<int>(num_heads(call, rows)),
          .num_blocks = static_cast<int>(num_blocks(call, rows, rows_per_tile)),
          .bundle = bundle_of(call, rows, l2_bytes)};
}

}  // namespace parallax::cuda::sm90
