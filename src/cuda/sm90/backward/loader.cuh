// The warps that fill the shared memory of a block of a backward pass.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/ptx/tma.cuh"
#include "cuda/sm90/backward/row_constants.cuh"
#include "cuda/sm90/backward/shared.cuh"
#include "cuda/sm90/backward/steps.cuh"
#include "cuda/sm90/ring.cuh"

namespace parallax::cuda::sm90 {

/// The loaders: of a consumer's operands and of the two parts of steps, one thread each, and of the
/// row constants, a warp.
template <class Pass, bool kRepair>
class BackwardLoader {
 public:
  __device__ __forceinline__ BackwardLoader(const BackwardMaps& maps, const PassParams& params,
                                            const BackwardShared<Pass>& shared)
      : maps_(maps), params_(params), shared_(shared) {}

  /// Draws the tiles and loads the consumers' operands.
  __device__ __forceinline__ void load_own() {
    Ring<2> slots;
    int ticket = static_cast<int>(blockIdx.x), parity = 0;
    Tile tile{};
    while (true) {
      tile.number = -1;
      while (ticket >= 0 && tile.number < 0) ticket = try_ticket(ticket, tile);
      ptx::barrier_wait(shared_.empty_tile(slots.stage), slots.parity ^ 1);
      shared_.store_tile(slots.stage, tile);
      ptx::barrier_arrive(shared_.full_tile(slots.stage));
      if (tile.number < 0) return;
      slots.advance();
      for (int set = 0; set < Pass::kOwnSets; ++set) {
        ptx::barrier_wait(shared_.empty_own(set), parity ^ 1);
        load_own_of(tile, set);
      }
      parity ^= 1;
    }
  }

  /// The tiles of steps for the scores, or the last one.
  template <bool kFirst>
  __device__ __forceinline__ void load_steps() {
    Ring<2> slots;
    Ring<kFirst ? Pass::kStages : Pass::kLastStages> stages;
    while (true) {
      ptx::barrier_wait(shared_.full_tile(slots.stage), slots.parity);
      const Tile tile = shared_.load_tile(slots.stage);
      ptx::barrier_arrive(shared_.empty_tile(slots.stage));
      if (tile.number < 0) return;
      slots.advance();
      for_steps(tile, [&](int head, int step) {
        load_step<kFirst>(tile, head, step, stages);
        stages.advance();
      });
    }
  }

  /// A whole warp of the pass over keys: the constants of each step's queries.
  __device__ __forceinline__ void load_constants() {
    Ring<2> slots;
    Ring<Pass::kStages> stages;
    while (true) {
      ptx::barrier_wait(shared_.full_tile(slots.stage), slots.parity);
      const Tile tile = shared_.load_tile(slots.stage);
      __syncwarp();
      if (threadIdx.x % 32 == 0) ptx::barrier_arrive(shared_.empty_tile(slots.stage));
      if (tile.number < 0) return;
      slots.advance();
      const int first_head = tile.head * params_.call.attention.group;
      for_steps(tile, [&](int head, int step) {
        const float* const source =
            constants_of(params_, tile, first_head + head) + step * kConstantFloats;
        ptx::barrier_wait(shared_.empty_first(stages.stage), stages.parity ^ 1);
        copy_constants(shared_.constants(stages.stage), source, shared_.full_first(stages.stage));
        stages.advance();
      });
    }
  }

 private:
  static constexpr int kTileBytes = Pass::Config::kTileBytes;

  /// Calls body(head of the group, step) for all steps of a tile, in their order.
  template <typename Body>
  __device__ __forceinline__ void for_steps(const Tile& tile, Body body) const {
    const AttentionCall& call = params_.call.attention;
    const Steps steps = steps_of<Pass::kRows>(call, tile, tile.first_row, Pass::kTileRows);
    const int num_heads = Pass::kKeys ? call.group : 1;
    for (int head = 0; head < num_heads; ++head)
      for (int idx = 0; idx < steps.end - steps.begin; ++idx)
        body(head, step_at<Pass::kRows>(steps, idx));
  }

  __device__ __forceinline__ void copy_constants(uint32_t target, const float* source,
                                                 uint32_t full) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int piece = 0; piece < Pass::kConstantBytes / 16; piece += 32)
      ptx::store_shared_int4(target + (piece + lane) * 16,
                             reinterpret_cast<const int4*>(source)[piece + lane]);
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(full);
  }

  /// The tile of a ticket, if it has rows, and the next ticket; negative: there is none.
  __device__ __forceinline__ int try_ticket(int ticket, Tile& tile) {
    int number = ticket;
    if constexpr (kRepair) {
      if (ticket >= static_cast<int>(params_.workspace->num_flagged)) return -1;
      number = static_cast<int>(params_.flagged_tiles[ticket]);
      ticket += static_cast<int>(gridDim.x);
    } else {
      if (ticket >= params_.schedule.num_tiles) return -1;
      ticket = static_cast<int>(gridDim.x + atomicAdd(&params_.workspace->next_tile, 1u));
    }
    const bool exists = find_tile<Pass::kRows>(params_.call.attention, params_.schedule,
                                               Pass::kTileRows, number, tile);
    if (!exists) tile.number = -1;
    return ticket;
  }

  /// 64 rows of a tensor. Heads are the map's.
  __device__ __forceinline__ void load(const CUtensorMap& map, uint32_t target, uint32_t full,
                                       int token, int head, int batch) const {
#pragma unroll
    for (int chunk = 0; chunk < Pass::Config::kChunks; ++chunk)
      ptx::copy_box(target + chunk * Pass::Config::kChunkBytes, map, full,
                    {.column = chunk * Pass::Config::kChunkColumns,
                     .token = token,
                     .head = head,
                     .batch = batch});
  }

  __device__ __forceinline__ void load_own_of(const Tile& tile, int set) const {
    const uint32_t full = shared_.full_own(set);
    const int row = tile.first_row + set * kBackwardRows;
    if constexpr (Pass::kKeys) {
      ptx::barrier_expect(full, 2 * kTileBytes);
      load(maps_.k, shared_.own(set, 0), full, tile.key_row + row, tile.head, tile.batch);
      load(maps_.v, shared_.own(set, 1), full, tile.key_row + row, tile.head, tile.batch);
    } else {
      const int token = tile.query_row + row;
      ptx::barrier_expect(full, 3 * kTileBytes);
      load(maps_.q, shared_.own(set, 0), full, token, tile.head, tile.batch);
      load(maps_.r, shared_.own(set, 1), full, token, tile.head, tile.batch);
      load(maps_.d_out, shared_.own(set, 2), full, token, tile.head, tile.batch);
    }
  }

  template <bool kFirst, class Stages>
  __device__ __forceinline__ void load_step(const Tile& tile, int head_of_group, int step,
                                            const Stages& ring) const {
    const int stage = ring.stage, row = step * kBackwardRows;
    const uint32_t full = kFirst ? shared_.full_first(stage) : shared_.full_last(stage);
    const uint32_t empty = kFirst ? shared_.empty_first(stage) : shared_.empty_last(stage);
    ptx::barrier_wait(empty, ring.parity ^ 1);
    const int group = params_.call.attention.group;
    if constexpr (!Pass::kKeys) {
      ptx::barrier_expect(full, kTileBytes);
      load(kFirst ? maps_.k : maps_.v, kFirst ? shared_.first(stage, 0) : shared_.last(stage), full,
           tile.key_row + row, tile.head / group, tile.batch);
      return;
    }
    const int head = tile.head * group + head_of_group, token = tile.query_row + row;
    if constexpr (!kFirst) {
      ptx::barrier_expect(full, kTileBytes);
      load(maps_.d_out, shared_.last(stage), full, token, head, tile.batch);
    } else {
      ptx::barrier_expect(full, 2 * kTileBytes);
      load(maps_.q, shared_.first(stage, 0), full, token, head, tile.batch);
      load(maps_.r, shared_.first(stage, 1), full, token, head, tile.batch);
    }
  }

  const BackwardMaps& maps_;
  const PassParams& params_;
  const BackwardShared<Pass>& shared_;
};

}  // namespace parallax::cuda::sm90
