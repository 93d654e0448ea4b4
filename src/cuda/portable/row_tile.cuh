// A tile of the query rows of one key head, where row = token * group + head of the group, and the
// block that computes it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/tile_slots.cuh"
#include "cuda/portable/tile.cuh"

namespace parallax::cuda::portable {

struct RowTile {
  DeviceSequence sequence;
  int sequence_idx, head_kv;
  int first_row, num_rows;  // num_rows <= 0: the slot is empty
  int group;

  __device__ __forceinline__ int last_token() const { return (first_row + num_rows - 1) / group; }
};

/// The tile of this block, of slots.count blocks per key head. The last slots start first: under a
/// causal mask the last rows of a sequence see most keys.
template <int kRows>
__device__ __forceinline__ RowTile block_row_tile(const AttentionCall& call,
                                                  const TileSlots& slots) {
  const int64_t slot = slots.count - 1 - blockIdx.x % slots.count;
  const TilePlace place = tile_place(slots, slot);
  const DeviceSequence sequence = device_sequence(call.sequences, place.sequence_idx);
  const int64_t rows_left =
      static_cast<int64_t>(sequence.num_queries) * call.group - place.first_row;
  return {.sequence = sequence,
          .sequence_idx = place.sequence_idx,
          .head_kv = static_cast<int>(blockIdx.x / slots.count),
          .first_row = static_cast<int>(place.first_row),
          .num_rows = static_cast<int>(min(rows_left, int64_t{kRows})),
          .group = call.group};
}

/// The slots of row tiles of a call. Rows are counted in 32 bits on the device.
inline TileSlots row_tile_slots(const AttentionCall& call, int tile_rows) {
  const SequenceTable& table = call.sequences;
  constexpr int64_t kMaxRows = (int64_t{1} << 31) - 64;
  PLX_CHECK(table.num_queries * call.group <= kMaxRows, "a sequence of ", table.num_queries,
            " queries with ", call.group, " heads per key head has too many rows (at most ",
            kMaxRows, ")");
  return make_tile_slots(table.cu_seqlens_q, table.num_sequences, table.num_queries, call.group,
                         tile_rows);
}

__device__ __forceinline__ Source<QueryRows> query_source(const Operand<const void>& tensor,
                                                          const AttentionCall& call,
                                                          const RowTile& tile) {
  return {elements_of(tensor, call), query_rows(tensor, tile.sequence, tile.head_kv, call.group)};
}

__device__ __forceinline__ Source<KeyRows> key_source(const Operand<const void>& tensor,
                                                      const AttentionCall& call,
                                                      const DeviceSequence& sequence, int head_kv) {
  return {elements_of(tensor, call), key_rows(tensor, call.sequences, sequence, head_kv)};
}

/// The keys that some row of the tile sees.
__device__ __forceinline__ ItemRange tile_keys(const AttentionCall& call, const RowTile& tile) {
  return {visible_keys(call, tile.sequence, tile.first_row / tile.group).begin,
          visible_keys(call, tile.sequence, tile.last_token()).end};
}

/// The keys that every row of the tile sees.
__device__ __forceinline__ ItemRange common_keys(const AttentionCall& call, const RowTile& tile) {
  return {visible_keys(call, tile.sequence, tile.last_token()).begin,
          visible_keys(call, tile.sequence, tile.first_row / tile.group).end};
}

/// What each row of the tile sees; rows beyond its last see nothing. Ends with a barrier.
template <int kRows>
__device__ __forceinline__ void set_visible(const AttentionCall& call, const RowTile& tile,
                                            ItemRange (&visible)[kRows]) {
  if (threadIdx.x < kRows) {
    const int row = threadIdx.x;
    const KeySpan keys = visible_keys(call, tile.sequence, (tile.first_row + row) / tile.group);
    visible[row] = row < tile.num_rows ? ItemRange{keys.begin, keys.end} : ItemRange{0, 0};
  }
  __syncthreads();
}

}  // namespace parallax::cuda::portable
