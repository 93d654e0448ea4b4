// A tile in shared memory, as one loader leaves it for everybody else.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/ptx/shared.cuh"
#include "cuda/sm90/tile.cuh"

namespace parallax::cuda::sm90 {

/// All of a tile but sequence_idx: kTileWordBytes, 16-byte aligned.
constexpr int kTileWordBytes = 32;

__device__ __forceinline__ void store_tile_at(uint32_t address, const Tile& tile) {
  ptx::store_shared_int4(address, {tile.number, tile.head, tile.batch, tile.query_row});
  ptx::store_shared_int4(address + 16,
                         {tile.key_row, tile.first_row, tile.num_queries, tile.num_keys});
}
__device__ __forceinline__ Tile load_tile_at(uint32_t address) {
  const int4 first = ptx::load_shared_int4(address);
  const int4 second = ptx::load_shared_int4(address + 16);
  return {.number = first.x,
          .head = first.y,
          .batch = first.z,
          .query_row = first.w,
          .key_row = second.x,
          .first_row = second.y,
          .num_queries = second.z,
          .num_keys = second.w,
          .sequence_idx = 0};
}

}  // namespace parallax::cuda::sm90
