// A consumer of a backward pass: 64 rows of its tile against the steps that they meet.
//
// In every accumulator of 64 rows a thread of warp w and lane l has the rows 16 w + l / 4 and the
// next but 7, numbers 4 b, 4 b + 1 and 4 b + 2, 4 b + 3 of block b of 8 columns, at the columns 8 b
// + 2 (l % 4) and the next. Packed in pairs that is the A operand of the gradients' products.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/backward/gradients.cuh"
#include "cuda/sm90/backward/products.cuh"
#include "cuda/sm90/backward/repair.cuh"
#include "cuda/sm90/backward/results.cuh"
#include "cuda/sm90/backward/row_constants.cuh"

namespace parallax::cuda::sm90 {

template <class Pass, bool kRepair>
class BackwardConsumer {
 public:
  __device__ __forceinline__ BackwardConsumer(const PassParams& params,
                                              const BackwardShared<Pass>& shared, int idx)
      : params_(params), shared_(shared), idx_(idx) {}

  __device__ __forceinline__ void run() {
    int parity = 0;
    while (true) {
      ptx::barrier_wait(shared_.full_tile(slots_.stage), slots_.parity);
      const Tile tile = shared_.load_tile(slots_.stage);
      if (tile.number < 0) return;
      if constexpr (kKeys)
        ptx::barrier_wait(shared_.full_own(own_set()), parity);
      else
        start_queries<Pass>(params_, shared_, tile, idx_, parity);
      run_tile();
      store_results();
      release(shared_.empty_tile(slots_.stage));
      slots_.advance();
      parity ^= 1;
    }
  }

 private:
  using Config = typename Pass::Config;
  static constexpr bool kKeys = Pass::kKeys;
  static constexpr int kSumColumns = Config::kSumColumns;

  __device__ __forceinline__ int own_set() const { return Pass::own_set(idx_); }
  /// Where this consumer's columns of the sums lie in a tile of a step.
  __device__ __forceinline__ uint32_t column_bytes() const {
    return Config::kSplit ? idx_ * Config::kSumChunks * Config::kChunkBytes : 0;
  }

  // --- products ---

  /// The scores of the present stage.
  __device__ __forceinline__ void issue_scores(float (&scores)[32]) const {
    const auto& ring = stages_.first();
    ptx::barrier_wait(shared_.full_first(ring.stage), ring.parity);
    if constexpr (kRepair) clear_step();
    issue_dots<Config>(scores, shared_.own(own_set(), 0), shared_.first(ring.stage, 0));
  }

  /// What the gradients of the scores of the step before add, as one group.
  __device__ __forceinline__ void issue_gradients() {
    const uint32_t q_or_k = shared_.first(previous_stage_, 0) + column_bytes();
    issue_rows<Config>(first_sums_, gradients_.d_scores, q_or_k);
    if constexpr (kKeys)
      issue_rows<Config>(first_sums_, gradients_.d_t,
                         shared_.first(previous_stage_, 1) + column_bytes());
    else
      issue_rows<Config>(last_sums_, gradients_.d_t, q_or_k);
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void pin_sums() {
    ptx::pin(first_sums_);
    if constexpr (!kKeys) ptx::pin(last_sums_);
  }

  // --- the steps of a tile ---

  __device__ __forceinline__ void run_tile() {
#pragma unroll
    for (int i = 0; i < kSumColumns / 2; ++i) first_sums_[i] = last_sums_[i] = 0.0f;
    const AttentionCall& call = params_.call.attention;
    const Tile tile = shared_.load_tile(slots_.stage);
    const Steps all = steps_of<Pass::kRows>(call, tile, tile.first_row, Pass::kTileRows);
    const Steps own = steps_of<Pass::kRows>(call, tile, tile.first_row + own_set() * kBackwardRows,
                                            kBackwardRows);
    const StepRange range = range_of<Pass::kRows>(all, own);
    const int count = all.end - all.begin;
    const int num_heads = kKeys ? call.group : 1;
#pragma unroll 1
    for (int head = 0; head < num_heads; ++head) {
      const bool is_last = head == num_heads - 1;
      if (range.begin == range.end) {
        if (is_last) release(shared_.empty_own(own_set()));
        skip_steps(count);
        continue;
      }
      skip_steps(range.begin);
      step_ = step_at<Pass::kRows>(all, range.begin);
      first_step();
      int idx = range.begin + 1;
#pragma unroll 1
      for (; idx < range.whole_begin; ++idx) next_step<true>();
#pragma unroll 1
      for (; idx < range.whole_end; ++idx) next_step<false>();
#pragma unroll 1
      for (; idx < range.end; ++idx) next_step<true>();
      if (is_last) release(shared_.empty_own(own_set()));  // the next tile's may come
      last_gradients();
      skip_steps(count - range.end);
    }
  }

  /// Steps that only the other consumer needs.
  __device__ __forceinline__ void skip_steps(int count) {
#pragma unroll 1
    for (int idx = 0; idx < count; ++idx) {
      const auto& first = stages_.first();
      ptx::barrier_wait(shared_.full_first(first.stage), first.parity);
      wait_for_last();
      if constexpr (kRepair) clear_step();
      release(shared_.empty_first(first.stage));
      release(shared_.empty_last(stages_.last().stage));
      stages_.advance();
    }
  }

  __device__ __forceinline__ void first_step() {
    float scores[32];
    issue_scores(scores);
    ptx::wgmma_wait<0>();
    ptx::pin(scores);
    finish_step<true, true>(scores);
  }

  template <bool kMasked>
  __device__ __forceinline__ void next_step() {
    step_ += kKeys ? 1 : -1;
    float scores[32];
    issue_scores(scores);
    issue_gradients();
    ptx::wgmma_wait<1>();
    ptx::pin(scores);
    finish_step<kMasked, false>(scores);
  }

  __device__ __forceinline__ void last_gradients() {
    issue_gradients();
    ptx::wgmma_wait<0>();
    pin_sums();
    release(shared_.empty_first(previous_stage_));
  }

  /// From the scores of a step to the gradients of scores, which the next step multiplies. kFirst:
  /// there are none of a step before.
  template <bool kMasked, bool kFirst>
  __device__ __forceinline__ void finish_step(float (&scores)[32]) {
    const int stage = stages_.first().stage;
    const uint32_t constants = shared_.constants(kKeys ? stage : idx_);
    const VisibleColumns<kMasked> visible = visible_columns<kMasked>();
    uint32_t weights[16];
    score_weights<Pass>(scores, constants, visible, params_.scale_log2, weights);
    // Hidden weights are 0. That is enough while the rest is finite, which the repair cannot count
    // on.
    const VisibleColumns<kMasked && kRepair> kept{{visible.spans[0], visible.spans[1]}};
    if constexpr (!kFirst) {
      ptx::wgmma_wait<0>();
      pin_sums();
      release(shared_.empty_first(previous_stage_));
    }
    if constexpr (kKeys)
      key_gradients(stage, constants, kept, weights);
    else
      query_gradients(stage, constants, kept, weights);
    release(shared_.empty_last(stages_.last().stage));
    previous_stage_ = stage;
    stages_.advance();
  }

  /// dV needs its weights, p a, at once: its product runs with that of d_out.v.
  template <class Visible>
  __device__ __forceinline__ void key_gradients(int stage, uint32_t constants,
                                                const Visible& visible,
                                                const uint32_t (&weights)[16]) {
    float t[32], g[32];
    SlopePairs pairs;
    issue_dots<Config>(t, shared_.own(own_set(), 0), shared_.first(stage, 1));
    const uint32_t d_out = wait_for_last();
    issue_dots<Config>(g, shared_.own(own_set(), 1), d_out);
    ptx::wgmma_wait<1>();
    ptx::pin(t);
    slopes_of<Pass>(t, weights, constants, visible, params_.call.attention.softmax_scale, pairs);
    issue_rows<Config>(last_sums_, pairs.value_weights, d_out + column_bytes());
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    ptx::pin(g);
    score_gradients<Pass>(g, weights, constants, visible, PackedSlopes{pairs.slopes}, gradients_);
    ptx::wgmma_wait<0>();
    ptx::pin(last_sums_);
  }

  template <class Visible>
  __device__ __forceinline__ void query_gradients(int stage, uint32_t constants,
                                                  const Visible& visible,
                                                  const uint32_t (&weights)[16]) {
    float t[32], g[32];
    issue_dots<Config>(t, shared_.own(own_set(), 1), shared_.first(stage, 0));
    issue_dots<Config>(g, shared_.own(own_set(), 2), wait_for_last());
    ptx::wgmma_wait<1>();
    ptx::pin(t);
    const float scale = params_.call.attention.softmax_scale;
    const Constants<Pass, kSlope> slope(constants);
#pragma unroll
    for (int i = 0; i < 32; ++i) t[i] = fmaf(-scale, t[i], component(slope.block(i / 4), i % 4));
    ptx::wgmma_wait<0>();
    ptx::pin(g);
    score_gradients<Pass>(g, weights, constants, visible, PlainSlopes{t}, gradients_);
  }

  /// The present step's d_out or v, which has landed.
  __device__ __forceinline__ uint32_t wait_for_last() const {
    const auto& ring = stages_.last();
    ptx::barrier_wait(shared_.full_last(ring.stage), ring.parity);
    return shared_.last(ring.stage);
  }

  template <bool kMasked>
  __device__ __forceinline__ VisibleColumns<kMasked> visible_columns() const {
    VisibleColumns<kMasked> visible{};
    if constexpr (kMasked) {
      const Tile tile = shared_.load_tile(slots_.stage);
      const int row = tile.first_row + own_set() * kBackwardRows + fragment_row();
      const int first = step_ * kBackwardRows + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const RowSpan span =
            visible_rows<Pass::kRows>(params_.call.attention, tile, row + 8 * half);
        visible.spans[half] = {span.begin - first, span.end - first};
      }
    }
    return visible;
  }

  // --- shared memory and results ---

  __device__ __forceinline__ void release(uint32_t empty) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::barrier_arrive(empty);
  }

  __device__ __forceinline__ void store_results() {
    const Tile tile = shared_.load_tile(slots_.stage);
    const BackwardCall& call = params_.call;
    const float power = ldexpf(1.0f, -Config::kWeightPower);
    const float last_factor = kKeys ? power / call.attention.softmax_scale : power;
    bool is_finite = true;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile.first_row + own_set() * kBackwardRows + fragment_row() + 8 * half;
      if constexpr (kRepair) poison(tile, row, half);
      const GradientRow<Pass> target{tile, row, Config::kSplit ? idx_ * kSumColumns : 0};
      is_finite &= target.write(kKeys ? call.dk : call.dq, first_sums_, half, power);
      is_finite &= target.write(kKeys ? call.dv : call.dr, last_sums_, half, last_factor);
    }
    if (!kRepair && __any_sync(~0u, !is_finite) && threadIdx.x % 32 == 0)
      params_.flagged_tiles[atomicAdd(&params_.workspace->num_flagged, 1u)] = tile.number;
  }

  // --- repair: a first launch flags tiles with results that are not finite ---

  /// 0 for every NaN and infinity of a step's tiles, by both consumers.
  __device__ __forceinline__ void clear_step() const {
    clear_tiles<Pass>(wait_for_last(), Pass::kLastBytes);
    clear_tiles<Pass>(shared_.first(stages_.first().stage, 0), Pass::kFirstBytes);
  }

  /// A row that meets a row with such numbers gets NaNs.
  __device__ __forceinline__ void poison(const Tile& tile, int row, int half) {
    if (!meets_bad_row<Pass>(params_, tile, row)) return;
#pragma unroll
    for (int i = 0; i < kSumColumns / 2; ++i)
      if (i / 2 % 2 == half) first_sums_[i] = last_sums_[i] = NAN;
  }

  const PassParams& params_;
  const BackwardShared<Pass>& shared_;
  const int idx_;  // of this warpgroup among the consumers

  Ring<2> slots_;
  StepRings<Pass::kStages, Pass::kLastStages> stages_;
  int previous_stage_ = 0;  // of the step before
  int step_ = 0;
  float first_sums_[kSumColumns / 2], last_sums_[kSumColumns / 2];  // dk, dv or dq, dr
  GradientPairs gradients_;                                         // of the step before
};

}  // namespace parallax::cuda::sm90
