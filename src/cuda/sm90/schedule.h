// How a call is cut into tiles, on the host; tile.cuh is the other side.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cuda/call.h"

namespace parallax::cuda::sm90 {

/// Of a block's shared memory: the copy engine's swizzle takes atoms of so many bytes.
constexpr int kSwizzleAlignment = 1024;

/// What the rows of a tile are.
enum class TileRows : uint8_t { kQueries, kKeys };

/// Work that the blocks share out: tile w of num_tiles is a block of rows of one sequence and head.
/// Heads come in bundles whose other operands fit the second-level cache; within one, the rows with
/// the most work under a causal mask come first for all heads: the last queries, the first keys.
struct TileSchedule {
  int num_tiles;
  int num_heads;   // over which tiles are spread: B times the heads, or those of packed sequences
  int num_blocks;  // of rows per head; packed: slots (device/tile_slots.cuh)
  int bundle;      // heads
};

/// Device memory that the blocks of a launch and of its repair share, zero at the start.
struct TileWorkspace {
  uint32_t next_tile;    // beyond the first of every block
  uint32_t num_flagged;  // tiles with a NaN or an infinity among their results
  uint32_t reserved[2];
};

/// Tiles of the call, those without rows included.
int64_t num_tiles(const AttentionCall& call, TileRows rows, int rows_per_tile);

/// num_tiles() must be less than 2^31.
TileSchedule make_schedule(const AttentionCall& call, TileRows rows, int rows_per_tile,
                           int64_t l2_bytes);

}  // namespace parallax::cuda::sm90
