// Shared memory of a block, and the two warps that fill it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/ptx/barrier.cuh"
#include "cuda/device/ptx/registers.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/sm90/forward/tiles.cuh"
#include "cuda/sm90/ring.cuh"
#include "cuda/sm90/tile_in_shared.cuh"

namespace parallax::cuda::sm90 {

/// Addresses in shared memory. full: the copies have landed; empty: every reader is done.
template <class Config>
class SharedTiles {
 public:
  explicit __device__ __forceinline__ SharedTiles(const char* memory)
      : base_(ptx::shared_address(memory)) {}

  __device__ __forceinline__ uint32_t query(int stage) const {
    return base_ + Config::kQueryOffset + stage * Config::kQueryBytes;
  }
  __device__ __forceinline__ uint32_t key(int stage) const {
    return base_ + Config::kKeyOffset + stage * Config::kKeyBytes;
  }
  __device__ __forceinline__ uint32_t value(int stage) const {
    return base_ + Config::kValueOffset + stage * Config::kKeyBytes;
  }
  __device__ __forceinline__ uint32_t full_key(int stage) const { return barrier(stage); }
  __device__ __forceinline__ uint32_t empty_key(int stage) const {
    return barrier(kStages + stage);
  }
  __device__ __forceinline__ uint32_t full_value(int stage) const {
    return barrier(2 * kStages + stage);
  }
  __device__ __forceinline__ uint32_t empty_value(int stage) const {
    return barrier(3 * kStages + stage);
  }
  __device__ __forceinline__ uint32_t full_query(int stage) const {
    return barrier(4 * kStages + stage);
  }
  __device__ __forceinline__ uint32_t empty_query(int stage) const {
    return barrier(4 * kStages + Config::kQueryStages + stage);
  }

  /// One thread: a consumer warpgroup releases keys and values once, each of its warps queries.
  __device__ __forceinline__ void init_barriers() const {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::barrier_init(full_key(stage), 1);
      ptx::barrier_init(full_value(stage), 1);
      ptx::barrier_init(empty_key(stage), Config::kConsumers);
      ptx::barrier_init(empty_value(stage), Config::kConsumers);
    }
    for (int stage = 0; stage < Config::kQueryStages; ++stage) {
      ptx::barrier_init(full_query(stage), 1);
      ptx::barrier_init(empty_query(stage), 4 * Config::kConsumers);
    }
    ptx::fence_barrier_init();
  }

  /// The tile of a query stage: written before full_query, read after it.
  __device__ __forceinline__ void store_tile(int stage, const Tile& tile) const {
    store_tile_at(tile_address(stage), tile);
  }
  __device__ __forceinline__ Tile load_tile(int stage) const {
    return load_tile_at(tile_address(stage));
  }

 private:
  static constexpr int kStages = Config::kStages;
  __device__ __forceinline__ uint32_t barrier(int idx) const {
    return base_ + Config::kBarrierOffset + idx * 8;
  }
  __device__ __forceinline__ uint32_t tile_address(int stage) const {
    return base_ + Config::kTileOffset + stage * Config::kTileBytes;
  }

  uint32_t base_;
};

/// The tiles of a block, one after the other. Called by a whole warp.
template <class Config, bool kRepair>
class TileSource {
 public:
  explicit __device__ __forceinline__ TileSource(const ForwardParams& params)
      : params_(params), next_(static_cast<int>(blockIdx.x)) {}

  /// Skips tiles without queries; number is negative when there are none left.
  __device__ __forceinline__ Tile take() {
    Tile tile{};
    while (true) {
      const int number = draw();
      if (number < 0) break;
      if (find_tile<TileRows::kQueries>(params_.call.attention, params_.schedule, Config::kQueries,
                                        number, tile))
        return tile;
    }
    tile.number = -1;
    return tile;
  }

 private:
  __device__ __forceinline__ int draw() {
    const int ticket = next_;
    if constexpr (kRepair) {
      next_ += static_cast<int>(gridDim.x);
      if (ticket >= static_cast<int>(params_.workspace->num_flagged)) return -1;
      return static_cast<int>(params_.flagged_tiles[ticket]);
    }
    if (ticket >= params_.schedule.num_tiles) return -1;
    unsigned drawn = 0;
    if (threadIdx.x % 32 == 0) drawn = gridDim.x + atomicAdd(&params_.workspace->next_tile, 1u);
    next_ = static_cast<int>(__shfl_sync(~0u, drawn, 0));
    return ticket;
  }

  const ForwardParams& params_;
  int next_;
};

/// One warp: q and r of each tile, in boxes of 8 rows and 64 columns, one per lane and round.
template <class Config, bool kRepair>
__device__ __forceinline__ void load_queries(const ForwardMaps& maps, const ForwardParams& params,
                                             const SharedTiles<Config>& shared) {
  constexpr int kGroups = Config::kQueries / 8;
  constexpr int kBoxes = 2 * kGroups * Config::kChunks;
  constexpr int kBoxBytes = 8 * Config::kRowBytes;
  const int lane = threadIdx.x % 32;
  TileSource<Config, kRepair> source(params);
  Ring<Config::kQueryStages> ring;
  while (true) {
    const Tile tile = source.take();
    const uint32_t full = shared.full_query(ring.stage);
    ptx::barrier_wait(shared.empty_query(ring.stage), ring.parity ^ 1);
    ptx::fence_async_shared();
    if (lane == 0) {
      shared.store_tile(ring.stage, tile);
      if (tile.number < 0)
        ptx::barrier_arrive(full);
      else
        ptx::barrier_expect(full, Config::kQueryBytes);
    }
    if (tile.number < 0) break;
    __syncwarp();
#pragma unroll
    for (int first = 0; first < kBoxes; first += 32) {
      const int box = first + lane;
      if (kBoxes % 32 != 0 && box >= kBoxes) break;
      const int chunk = box / (2 * kGroups), rows = box % (2 * kGroups);  // q and r by turns
      ptx::copy_box(shared.query(ring.stage) + chunk * Config::kQueryChunkBytes + rows * kBoxBytes,
                    rows % 2 == 0 ? maps.q : maps.r, full,
                    {.column = chunk * Config::kChunkColumns,
                     .token = tile.query_row + tile.first_row + rows / 2 * 8,
                     .head = tile.head,
                     .batch = tile.batch});
    }
    ring.advance();
  }
}

/// One thread: a step of k and of v after the other, the newest keys first.
template <class Config>
__device__ __forceinline__ void load_keys(const ForwardMaps& maps, const ForwardParams& params,
                                          const SharedTiles<Config>& shared) {
  if (threadIdx.x % 32 != 0) return;
  const auto load = [&](const CUtensorMap& map, uint32_t target, uint32_t full,
                        ptx::BoxOrigin origin) {
    ptx::barrier_expect(full, Config::kKeyBytes);
    for (int chunk = 0; chunk < Config::kChunks; ++chunk) {
      origin.column = chunk * Config::kChunkColumns;
      ptx::copy_box(target + chunk * Config::kKeyChunkBytes, map, full, origin);
    }
  };
  Ring<Config::kQueryStages> tiles;
  Ring<Config::kStages> ring;
  while (true) {
    ptx::barrier_wait(shared.full_query(tiles.stage), tiles.parity);
    const Tile tile = shared.load_tile(tiles.stage);
    if (tile.number < 0) break;
    const TileSteps steps = tile_steps<Config::kQueries, Config::kKeys>(params, tile);
    for (int step = 0; step < steps.count; ++step) {
      const int stage = ring.stage;
      const ptx::BoxOrigin origin{.column = 0,
                                  .token = tile.key_row + steps.end - (step + 1) * Config::kKeys,
                                  .head = tile.head / params.call.attention.group,
                                  .batch = tile.batch};
      ptx::barrier_wait(shared.empty_key(stage), ring.parity ^ 1);
      load(maps.k, shared.key(stage), shared.full_key(stage), origin);
      ptx::barrier_wait(shared.empty_value(stage), ring.parity ^ 1);
      load(maps.v, shared.value(stage), shared.full_value(stage), origin);
      ring.advance();
    }
    tiles.advance();
  }
}

}  // namespace parallax::cuda::sm90
