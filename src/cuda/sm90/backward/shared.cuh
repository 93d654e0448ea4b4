// Shared memory of a block of a backward pass.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/ptx/barrier.cuh"
#include "cuda/sm90/backward/config.h"
#include "cuda/sm90/tile_in_shared.cuh"

namespace parallax::cuda::sm90 {

/// Addresses in shared memory. full: the copies have landed; empty: every reader is done. Each warp
/// of a consumer releases for itself: a warp that lags must not miss a phase.
template <class Pass>
class BackwardShared {
 public:
  explicit __device__ __forceinline__ BackwardShared(const char* memory)
      : base_(ptx::shared_address(memory)) {}

  /// k, v or q, r, d_out of 64 rows of the tile.
  __device__ __forceinline__ uint32_t own(int set, int which) const {
    return base_ + Pass::kOwnOffset + set * Pass::kOwnBytes + which * kTileBytes;
  }
  /// q, r or k of a step, and its d_out or v.
  __device__ __forceinline__ uint32_t first(int stage, int which) const {
    return base_ + Pass::kFirstOffset + stage * Pass::kFirstBytes + which * kTileBytes;
  }
  __device__ __forceinline__ uint32_t last(int stage) const {
    return base_ + Pass::kLastOffset + stage * Pass::kLastBytes;
  }
  /// Row constants of a step of queries, or of a consumer's queries: float[4][64].
  __device__ __forceinline__ uint32_t constants(int idx) const {
    return base_ + Pass::kConstantOffset + idx * Pass::kConstantBytes;
  }
  /// The tiles of a step that the scores need, and the last one.
  __device__ __forceinline__ uint32_t full_first(int stage) const { return barrier(stage); }
  __device__ __forceinline__ uint32_t empty_first(int stage) const {
    return barrier(kStages + stage);
  }
  __device__ __forceinline__ uint32_t full_last(int stage) const {
    return barrier(2 * kStages + stage);
  }
  __device__ __forceinline__ uint32_t empty_last(int stage) const {
    return barrier(2 * kStages + kLastStages + stage);
  }
  __device__ __forceinline__ uint32_t full_own(int set) const {
    return barrier(kOwnBarriers + set);
  }
  __device__ __forceinline__ uint32_t empty_own(int set) const {
    return barrier(kOwnBarriers + Pass::kOwnSets + set);
  }
  __device__ __forceinline__ uint32_t full_tile(int slot) const {
    return barrier(kOwnBarriers + 2 * Pass::kOwnSets + slot);
  }
  __device__ __forceinline__ uint32_t empty_tile(int slot) const {
    return barrier(kOwnBarriers + 2 * Pass::kOwnSets + 2 + slot);
  }

  /// One thread.
  __device__ __forceinline__ void init_barriers() const {
    constexpr int kConsumerWarps = 4 * Pass::kConsumers;
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::barrier_init(full_first(stage), Pass::kKeys ? 2 : 1);  // and the row constants
      ptx::barrier_init(empty_first(stage), kConsumerWarps);
    }
    for (int stage = 0; stage < kLastStages; ++stage) {
      ptx::barrier_init(full_last(stage), 1);
      ptx::barrier_init(empty_last(stage), kConsumerWarps);
    }
    for (int set = 0; set < Pass::kOwnSets; ++set) {
      ptx::barrier_init(full_own(set), 1);
      ptx::barrier_init(empty_own(set), kConsumerWarps / Pass::kOwnSets);
    }
    for (int slot = 0; slot < 2; ++slot) {
      ptx::barrier_init(full_tile(slot), 1);
      ptx::barrier_init(empty_tile(slot), kConsumerWarps + Pass::kLoaders - 1);  // not the first
    }
    ptx::fence_barrier_init();
  }

  /// Written before full_tile, read after it.
  __device__ __forceinline__ void store_tile(int slot, const Tile& tile) const {
    store_tile_at(tile_address(slot), tile);
    ptx::store_shared(tile_address(slot) + kTileWordBytes,
                      static_cast<uint32_t>(tile.sequence_idx));
  }
  __device__ __forceinline__ Tile load_tile(int slot) const {
    Tile tile = load_tile_at(tile_address(slot));
    tile.sequence_idx = static_cast<int>(ptx::load_shared(tile_address(slot) + kTileWordBytes));
    return tile;
  }

 private:
  static constexpr int kStages = Pass::kStages, kLastStages = Pass::kLastStages;
  static constexpr int kOwnBarriers = 2 * kStages + 2 * kLastStages;
  static constexpr int kTileBytes = Pass::Config::kTileBytes;
  __device__ __forceinline__ uint32_t barrier(int idx) const {
    return base_ + Pass::kBarrierOffset + idx * 8;
  }
  __device__ __forceinline__ uint32_t tile_address(int slot) const {
    return base_ + Pass::kTileOffset + slot * Pass::kTileSlotBytes;
  }

  uint32_t base_;
};

}  // namespace parallax::cuda::sm90
