// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/forward/schedule.h"

#include "cuda/device/tile_slots.cuh"

namespace parallax::cuda::sm90 {
namespace {

bool is_packed(const AttentionCall& call) { return call.sequences.cu_seqlens_q != nullptr; }

int64_t num_heads(const AttentionCall& call) {
  return is_packed(call) ? call.num_heads_q : call.sequences.num_sequences * call.num_heads_q;
}

/// Of each head; packed: the slots of all sequences.
int64_t num_blocks(const AttentionCall& call, const ForwardTile& tile) {
  const SequenceTable& table = call.sequences;
  const int64_t num_sequences = is_packed(call) ? table.num_sequences : 1;
  return make_tile_slots(table.cu_seqlens_q, num_sequences, table.num_queries,
                         /*rows_per_token=*/1, tile.queries)
      .count;
}

/// Heads whose keys and values stay in the second-level cache while their tiles are computed.
/// Measured with 50 MB: more than 16 heads or 32 MB are slower.
int bundle_of(const AttentionCall& call, int64_t l2_bytes) {
  constexpr int kMaxBundle = 16;
  const int64_t head_bytes =
      4 * call.sequences.num_keys * call.head_dim / call.group;  // k and v, 2 bytes each
  int bundle = 1;
  while (bundle < kMaxBundle && 2 * bundle <= num_heads(call) &&
         2 * bundle * head_bytes <= l2_bytes / 8 * 5)
    bundle *= 2;
  return bundle;
}

}  // namespace

int64_t num_tiles(const AttentionCall& call, const ForwardTile& tile) {
  return num_heads(call) * num_blocks(call, tile);
}

TileSchedule make_schedule(const AttentionCall& call, const ForwardTile& tile, int64_t l2_bytes) {
  return {.num_tiles = static_cast<int>(num_tiles(call, tile)),
          .num_heads = static_cast<int>(num_heads(call)),
          .num_blocks = static_cast<int>(num_blocks(call, tile)),
          .bundle = bundle_of(call, l2_bytes)};
}

}  // namespace parallax::cuda::sm90
