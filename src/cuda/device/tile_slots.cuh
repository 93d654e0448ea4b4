// Tiles of rows of all sequences, numbered by slots, where the host may know the total only.
//
// Sequence i of a packed tensor takes the slots from first(i) = cu_seqlens[i] R / S + i on, with R
// rows per token and S rows per tile (a division of integers). first() grows with i by at least
// one, and first(i + 1) - first(i) >= ceil(rows of i / S), since floor((a + n) / S) - floor(a / S)
// + 1 >= ceil(n / S). So every tile has a slot of its own, a binary search over cu_seqlens finds a
// slot's sequence, and first(N) = total R / S + N slots are enough for all. At most N of them stay
// empty.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace parallax::cuda {

struct TileSlots {
  const int32_t* cu_seqlens;  // device memory; null: all sequences have the same length
  int64_t num_sequences;
  int64_t tiles_per_sequence;  // without cu_seqlens
  int rows_per_token, tile_rows;
  int64_t count;
};

/// `num_tokens`: of each sequence; with cu_seqlens: of all.
inline TileSlots make_tile_slots(const int32_t* cu_seqlens, int64_t num_sequences,
                                 int64_t num_tokens, int rows_per_token, int tile_rows) {
  const int64_t num_rows = num_tokens * rows_per_token;
  const int64_t tiles = (num_rows + tile_rows - 1) / tile_rows;
  const int64_t packed_count = num_sequences == 0 ? 0 : num_rows / tile_rows + num_sequences;
  return {.cu_seqlens = cu_seqlens,
          .num_sequences = num_sequences,
          .tiles_per_sequence = tiles,
          .rows_per_token = rows_per_token,
          .tile_rows = tile_rows,
          .count = cu_seqlens != nullptr ? packed_count : num_sequences * tiles};
}

/// The tile of a slot. An empty slot has a first_row beyond the sequence's last.
struct TilePlace {
  int sequence_idx;
  int64_t first_row;
};

__host__ __device__ inline int64_t first_slot(const TileSlots& slots, int sequence_idx) {
  const int64_t first_row =
      static_cast<int64_t>(slots.cu_seqlens[sequence_idx]) * slots.rows_per_token;
  return first_row / slots.tile_rows + sequence_idx;
}

__host__ __device__ inline TilePlace tile_place(const TileSlots& slots, int64_t slot) {
  if (slots.cu_seqlens == nullptr)
    return {static_cast<int>(slot / slots.tiles_per_sequence),
            slot % slots.tiles_per_sequence * slots.tile_rows};
  int low = 0, high = static_cast<int>(slots.num_sequences);
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (first_slot(slots, middle) <= slot)
      low = middle;
    else
      high = middle;
  }
  return {low, (slot - first_slot(slots, low)) * slots.tile_rows};
}

}  // namespace parallax::cuda
