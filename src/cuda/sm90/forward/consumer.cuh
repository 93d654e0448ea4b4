// A consumer warpgroup: 32 queries against the keys of a tile, step by step.
//
// Thread x of the warpgroup has one query, 8 (x / 32) + x % 32 / 4 of the 32, and a quarter of its
// columns; the four threads of a query are neighbours (a quad). In every accumulator numbers 4 b
// and 4 b + 1 belong to the q row and 4 b + 2 and 4 b + 3 to the r row, at the columns 8 b + 2 (x %
// 4) and the next.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "cuda/device/ptx/wgmma.cuh"
#include "cuda/sm90/forward/loader.cuh"
#include "cuda/sm90/forward/repair.cuh"
#include "cuda/sm90/forward/results.cuh"
#include "cuda/sm90/forward/softmax.cuh"

namespace parallax::cuda::sm90 {

template <class Config, bool kRepair>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const ForwardParams& params,
                                      const SharedTiles<Config>& shared, int idx)
      : params_(params), shared_(shared), idx_(idx) {}

  __device__ __forceinline__ void run() {
    if (kTakesTurns && idx_ == kConsumers - 1) pass_turn();
    ptx::barrier_wait(shared_.full_query(0), 0);
    if (shared_.load_tile(0).number < 0) return;
    start_tile();
    first_step();
    while (true) {
      middle_steps();
      release_queries();
      ptx::barrier_wait(shared_.full_query(queries_.stage), queries_.parity);
      if (shared_.load_tile(queries_.stage).number < 0) break;
      next_tile();
    }
    last_values();
  }

 private:
  using Element = typename Config::Element;
  static constexpr int kConsumers = Config::kConsumers, kKeys = Config::kKeys;
  static constexpr int kHeadDim = Config::kHeadDim;
  /// A last step of which only the newer half is visible is computed as half a step.
  static constexpr bool kHalfSteps = kKeys == 128 && !kRepair;
  static constexpr bool kTakesTurns = Config::kHeadDim <= 128 && !kRepair;

  /// Score products: S and T of 32 queries and kKeys keys.
  using Scores = float[kKeys / 2];

  // --- turns: kTurnBarrier + i lets consumer i issue its products ---

  __device__ __forceinline__ void wait_turn() const {
    if constexpr (kTakesTurns) ptx::named_barrier_sync(kTurnBarrier + idx_, 2 * Config::kWarpgroup);
  }
  __device__ __forceinline__ void pass_turn() const {
    if constexpr (kTakesTurns)
      ptx::named_barrier_arrive(kTurnBarrier + (idx_ + 1) % kConsumers, 2 * Config::kWarpgroup);
  }

  // --- products ---

  /// scores = [Q; R] K' of the keys in the present stage from kFrom on, as one group.
  template <int kFrom = 0>
  __device__ __forceinline__ void issue_scores(float (&scores)[(kKeys - kFrom) / 2]) const {
    const uint64_t queries = ptx::operand(
        shared_.query(queries_.stage) + idx_ * 2 * Config::kGroupQueries * Config::kRowBytes,
        /*leading=*/16, /*stride=*/1024);
    const uint64_t keys = ptx::operand(shared_.key(keys_.stage) + kFrom * Config::kRowBytes,
                                       /*leading=*/16, /*stride=*/1024);
    ptx::pin(scores);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      const int chunk = k / 4, bytes = k % 4 * 32;
      ptx::Wgmma<kKeys - kFrom>::template shared_by_shared<Element>(
          scores, ptx::advance(queries, chunk * Config::kQueryChunkBytes + bytes),
          ptx::advance(keys, chunk * Config::kKeyChunkBytes + bytes), k > 0);
    }
    ptx::wgmma_commit();
  }

  /// sums += weights V of the values in that stage from kFrom on, as one group.
  template <int kFrom = 0>
  __device__ __forceinline__ void issue_values(int stage) {
    if constexpr (kRepair) clear_values<Config>(shared_.value(stage));
    const uint64_t values = ptx::operand(shared_.value(stage), /*leading=*/Config::kKeyChunkBytes,
                                         /*stride=*/1024);
    ptx::pin(sums_);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = kFrom / 16; k < kKeys / 16; ++k)
      ptx::Wgmma<kHeadDim>::template registers_by_shared<Element>(
          sums_, weights_ + 4 * k, ptx::advance(values, k * 16 * Config::kRowBytes), true);
    ptx::wgmma_commit();
  }

  // --- the steps of a tile ---

  __device__ __forceinline__ void start_tile() {
    const Tile tile = shared_.load_tile(queries_.stage);
    const TileSteps steps = tile_steps<Config::kQueries, kKeys>(params_, tile);
    step_ = 0;
    const int first_query = tile.first_row + idx_ * Config::kGroupQueries;
    const int query = first_query + threadIdx.x % Config::kWarpgroup / 4;
    const KeySpan visible = visible_keys(params_, tile, query);
    visible_ = {visible.begin - steps.end, visible.end - steps.end};
    if constexpr (kRepair) keys_end_ = steps.end;
    // Steps masked_until_ to whole_until_ are whole for every query of this warpgroup.
    const KeySpan oldest = visible_keys(params_, tile, first_query);
    const KeySpan newest = visible_keys(params_, tile, first_query + Config::kGroupQueries - 1);
    const int last_begin = steps.end - steps.count * kKeys;
    is_last_half_ = kHalfSteps && steps.count > 1 && oldest.begin >= last_begin + kKeys / 2;
    num_steps_ = steps.count - (is_last_half_ ? 1 : 0);
    masked_until_ = min((steps.end - oldest.end + kKeys - 1) / kKeys, num_steps_);
    whole_until_ = min((steps.end - newest.begin) / kKeys, num_steps_);
    row_ = {.tile = tile.number,
            .token = query < tile.num_queries ? tile.query_row + query : -1,
            .head = tile.head,
            .batch = tile.batch,
            .key_row = tile.key_row};
    state_ = {};
  }

  /// The first step of a tile, with nothing to run its exponentials under.
  __device__ __forceinline__ void first_step() {
    Scores scores;
    ptx::barrier_wait(shared_.full_key(keys_.stage), keys_.parity);
    issue_scores(scores);
    ptx::wgmma_wait<0>();
    ptx::pin(scores);
    release(shared_.empty_key(keys_.stage));
    weigh_first(scores);
  }

  __device__ __forceinline__ void weigh_first(Scores& scores) {
    hide_keys<Config>(scores, row_span());
    softmax_weights<Config, true>(scores, largest_score<Config>(scores), params_.scale_log2,
                                  state_);
    pack_weights<Config>(scores, state_, weights_);
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) sums_[i] = 0.0f;
  }

  /// One more step: its scores, of the keys from kFrom on, and the values of the step before.
  template <bool kMasked, int kFrom = 0>
  __device__ __forceinline__ void middle_step() {
    Scores scores;
    [[maybe_unused]] float part_of_scores[(kKeys - kFrom) / 2];  // a product fills an array
    const Ring<Config::kStages> values = keys_;
    keys_.advance();
    ptx::barrier_wait(shared_.full_key(keys_.stage), keys_.parity);
    wait_turn();
    if constexpr (kFrom == 0)
      issue_scores(scores);
    else
      issue_scores<kFrom>(part_of_scores);
    wait_values(values);
    issue_values(values.stage);
    pass_turn();
    ptx::wgmma_wait<1>();
    if constexpr (kFrom == 0) {
      ptx::pin(scores);
    } else {
      ptx::pin(part_of_scores);
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i)
        scores[i] = i < kFrom / 2 ? 0.0f : part_of_scores[i - kFrom / 2];
    }
    release(shared_.empty_key(keys_.stage));
    if constexpr (kMasked) hide_keys<Config>(scores, row_span());
    const float largest = largest_score<Config>(scores);
    if (!any_of_warpgroup(largest > state_.limit))
      finish_step<false>(scores, largest, values.stage);
    else
      finish_step<true>(scores, largest, values.stage);
  }

  /// Weights from scores, under the value products of the step before.
  template <bool kRenew>
  __device__ __forceinline__ void finish_step(Scores& scores, float largest, int value_stage) {
    softmax_weights<Config, kRenew>(scores, largest, params_.scale_log2, state_);
    ptx::wgmma_wait<0>();
    ptx::pin(sums_);
    release(shared_.empty_value(value_stage));
    pack_weights<Config>(scores, state_, weights_);
    if constexpr (kRenew) rescale_sums<Config>(state_, sums_);
  }

  /// Of all four warps, which so take the same branch: a wait for products is one instruction of
  /// theirs. The vote tells the compiler that the branch is uniform.
  __device__ __forceinline__ bool any_of_warpgroup(bool condition) const {
    const bool any = ptx::named_barrier_any(kVoteBarrier + idx_, Config::kWarpgroup, condition);
    return __any_sync(~0u, any);
  }

  __device__ __forceinline__ void middle_steps() {
    ++step_;
#pragma unroll 1
    for (; step_ < masked_until_; ++step_) middle_step<true>();
#pragma unroll 1
    for (; step_ < whole_until_; ++step_) middle_step<false>();
#pragma unroll 1
    for (; step_ < num_steps_; ++step_) middle_step<true>();
    if constexpr (kHalfSteps) {
      if (is_last_half_) middle_step<true, kKeys / 2>();
    }
  }

  /// The last values of this tile together with the first scores of the next, whose tile the loader
  /// has announced; the results of this one are stored under the latter.
  __device__ __forceinline__ void next_tile() {
    Scores scores;
    const Ring<Config::kStages> values = keys_;
    keys_.advance();
    wait_values(values);
    wait_turn();
    if (kHalfSteps && is_last_half_)
      issue_values<kKeys / 2>(values.stage);
    else
      issue_values(values.stage);
    ptx::barrier_wait(shared_.full_key(keys_.stage), keys_.parity);
    issue_scores(scores);
    pass_turn();
    ptx::wgmma_wait<1>();
    ptx::pin(sums_);
    release(shared_.empty_value(values.stage));
    store_results();
    start_tile();
    ptx::wgmma_wait<0>();
    ptx::pin(scores);
    release(shared_.empty_key(keys_.stage));
    weigh_first(scores);
  }

  __device__ __forceinline__ void last_values() {
    wait_values(keys_);
    issue_values(keys_.stage);
    ptx::wgmma_wait<0>();
    ptx::pin(sums_);
    store_results();
  }

  // --- shared memory ---

  __device__ __forceinline__ void wait_values(const Ring<Config::kStages>& values) const {
    ptx::barrier_wait(shared_.full_value(values.stage), values.parity);
  }
  /// One thread of the warpgroup speaks for all: their products are finished.
  __device__ __forceinline__ void release(uint32_t empty) const {
    if (threadIdx.x % Config::kWarpgroup == 0) ptx::barrier_arrive(empty);
  }
  __device__ __forceinline__ void release_queries() {
    if (threadIdx.x % 32 == 0) ptx::barrier_arrive(shared_.empty_query(queries_.stage));
    queries_.advance();
  }

  /// Of this thread's scores: the visible keys, counted from its first column of the step.
  __device__ __forceinline__ KeySpan row_span() const {
    const int first = threadIdx.x % 4 * 2 - (step_ + 1) * kKeys;
    return {visible_.begin - first, visible_.end - first};
  }

  __device__ __forceinline__ void store_results() {
    if constexpr (kRepair) {
      const KeySpan visible{visible_.begin + keys_end_, visible_.end + keys_end_};
      add_not_finite<Config>(params_, row_, visible, sums_);
    }
    if (write_row<Config>(params_, row_, visible_, state_, sums_)) flag_tile();
  }

  /// Leaves the tile to the repair (repair.cuh). Called by a whole warp.
  __device__ __forceinline__ void flag_tile() const {
    if constexpr (!kRepair) {
      if (threadIdx.x % 32 == 0)
        params_.flagged_tiles[atomicAdd(&params_.workspace->num_flagged, 1u)] = row_.tile;
    }
  }

  const ForwardParams& params_;
  const SharedTiles<Config>& shared_;
  const int idx_;  // of this warpgroup among the consumers

  Ring<Config::kQueryStages> queries_;
  Ring<Config::kStages> keys_;    // of the newest scores; values follow a step behind
  int step_ = 0, num_steps_ = 0;  // without a last half step
  int masked_until_ = 0, whole_until_ = 0;
  bool is_last_half_ = false;
  int keys_end_ = 0;   // of the tile's newest step, for the repair
  KeySpan visible_{};  // counted from keys_end_
  ResultRow row_{};
  RowState state_{};
  float sums_[kHeadDim / 2];     // O1 and O2
  uint32_t weights_[kKeys / 4];  // P and P (t - centre), as A of the value product
};

}  // namespace parallax::cuda::sm90
