// Which tile is whose: from a number of the schedule to a sequence, a head and a block of rows.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/sequence.cuh"
#include "cuda/device/tile_slots.cuh"
#include "cuda/sm90/schedule.h"

namespace parallax::cuda::sm90 {

/// A tile as one loader leaves it in shared memory for everybody else.
struct alignas(16) Tile {
  int number;                 // of the schedule; negative: there are no more
  int head;                   // of q, or of k for tiles of keys
  int batch;                  // index into batch strides; 0 for packed tensors
  int query_row, key_row;     // of the sequence in packed tensors, else 0
  int first_row;              // of the tile in its sequence
  int num_queries, num_keys;  // of the sequence
  int sequence_idx;           // not kept by the forward kernel
};

/// Tile `number`, of `num_rows` rows; false if it has none.
template <TileRows kRows>
__host__ __device__ inline bool find_tile(const AttentionCall& call, const TileSchedule& schedule,
                                          int num_rows, int number, Tile& tile) {
  constexpr bool kQueries = kRows == TileRows::kQueries;
  const int bundle_tiles = schedule.bundle * schedule.num_blocks;
  const int first_head = number / bundle_tiles * schedule.bundle;
  const int rest = number % bundle_tiles;
  const int width = min(schedule.bundle, schedule.num_heads - first_head);
  const int block = kQueries ? schedule.num_blocks - 1 - rest / width : rest / width;
  const int head = first_head + rest % width;
  const SequenceTable& table = call.sequences;
  const int num_heads = kQueries ? call.num_heads_q : call.num_heads_kv;
  const bool packed = table.cu_seqlens_q != nullptr;
  const TileSlots slots{.cu_seqlens = kQueries ? table.cu_seqlens_q : table.cu_seqlens_k,
                        .num_sequences = table.num_sequences,
                        .tiles_per_sequence = schedule.num_blocks,
                        .rows_per_token = 1,
                        .tile_rows = num_rows,
                        .count = 0};
  // Dense: the blocks of one head are slots of one sequence.
  const TilePlace place = tile_place(slots, block);
  const int idx = packed ? place.sequence_idx : head / num_heads;
  const DeviceSequence sequence = device_sequence(table, idx);
  tile.number = number;
  tile.head = packed ? head : head % num_heads;
  tile.batch = packed ? 0 : idx;
  tile.query_row = static_cast<int>(sequence.query_row);
  tile.key_row = static_cast<int>(sequence.key_row);
  tile.num_queries = sequence.num_queries;
  tile.num_keys = sequence.key_end;
  tile.first_row = static_cast<int>(place.first_row);
  tile.sequence_idx = idx;
  return tile.first_row < (kQueries ? tile.num_queries : tile.num_keys);
}

/// The sequence of a tile, for visible_keys() and visible_queries().
__host__ __device__ inline DeviceSequence sequence_of(const Tile& tile) {
  return {.batch = tile.batch,
          .query_row = tile.query_row,
          .key_row = tile.key_row,
          .num_queries = tile.num_queries,
          .key_begin = 0,
          .key_end = tile.num_keys};
}

}  // namespace parallax::cuda::sm90
