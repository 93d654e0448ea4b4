// Which tile is whose: from a number of the schedule to a sequence, a head and a block of queries,
// and from there to the steps of keys that the tile needs.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/sequence.cuh"
#include "cuda/device/tile_slots.cuh"
#include "cuda/sm90/forward/kernel.h"

namespace parallax::cuda::sm90 {

/// A tile as the loader of q leaves it in shared memory for everybody else.
struct alignas(16) Tile {
  int number;                 // of the schedule; negative: there are no more
  int head;                   // of q
  int batch;                  // index into batch strides; 0 for packed tensors
  int query_row, key_row;     // of the sequence in packed tensors, else 0
  int first_query;            // of the tile in its sequence
  int num_queries, num_keys;  // of the sequence
};

/// Tile `number`; false if it has no queries.
template <int kQueries>
__host__ __device__ inline bool find_tile(const ForwardParams& params, int number, Tile& tile) {
  const TileSchedule& schedule = params.schedule;
  const int bundle_tiles = schedule.bundle * schedule.num_blocks;
  const int first_head = number / bundle_tiles * schedule.bundle;
  const int rest = number % bundle_tiles;
  const int width = min(schedule.bundle, schedule.num_heads - first_head);
  const int block = schedule.num_blocks - 1 - rest / width;
  const int head = first_head + rest % width;
  const SequenceTable& table = params.call.attention.sequences;
  const int num_heads_q = params.call.attention.num_heads_q;
  const bool packed = table.cu_seqlens_q != nullptr;
  const TileSlots slots{.cu_seqlens = table.cu_seqlens_q,
                        .num_sequences = table.num_sequences,
                        .tiles_per_sequence = schedule.num_blocks,
                        .rows_per_token = 1,
                        .tile_rows = kQueries,
                        .count = 0};
  // Dense: the blocks of one head are slots of one sequence.
  const TilePlace place = tile_place(slots, block);
  const int idx = packed ? place.sequence_idx : head / num_heads_q;
  const DeviceSequence sequence = device_sequence(table, idx);
  tile.number = number;
  tile.head = packed ? head : head % num_heads_q;
  tile.batch = packed ? 0 : idx;
  tile.query_row = static_cast<int>(sequence.query_row);
  tile.key_row = static_cast<int>(sequence.key_row);
  tile.num_queries = sequence.num_queries;
  tile.num_keys = sequence.key_end;
  tile.first_query = static_cast<int>(place.first_row);
  return tile.first_query < tile.num_queries;
}

/// The keys that one query of the tile's sequence sees.
__host__ __device__ inline KeySpan visible_keys(const ForwardParams& params, const Tile& tile,
                                                int query) {
  const DeviceSequence sequence{.batch = tile.batch,
                                .query_row = tile.query_row,
                                .key_row = tile.key_row,
                                .num_queries = tile.num_queries,
                                .key_begin = 0,
                                .key_end = tile.num_keys};
  return visible_keys(params.call.attention, sequence, query);
}

/// The steps of a tile, the newest first: step s has the kKeys keys from end - (s + 1) kKeys on.
/// The last one may begin before key 0. There is at least one, so that there is a result to write.
struct TileSteps {
  int end, count;
};

template <int kQueries, int kKeys>
__host__ __device__ inline TileSteps tile_steps(const ForwardParams& params, const Tile& tile) {
  const int begin = visible_keys(params, tile, tile.first_query).begin;
  const int last_query = min(tile.first_query + kQueries, tile.num_queries) - 1;
  const int end = visible_keys(params, tile, last_query).end;
  return {end, max((end - begin + kKeys - 1) / kKeys, 1)};
}

}  // namespace parallax::cuda::sm90
