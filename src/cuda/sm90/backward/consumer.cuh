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
#include "cuda/sm90/write_row.cuh"

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
      if (shared_.load_tile(slots_.stage).number < 0) return;
      ptx::barrier_wait(shared_.full_own(idx_), parity);
      run_tile();
      store_results();
      release(shared_.empty_tile(slots_.stage));
      slots_.advance();
      parity ^= 1;
    }
  }

 private:
  using Config = typename Pass::Config;
  using Element = typename Config::Element;
  static constexpr bool kKeys = Pass::kKeys;
  static constexpr int kHeadDim = Config::kHeadDim;

  // --- products ---

  /// The scores of the present stage.
  __device__ __forceinline__ void issue_scores(float (&scores)[32]) const {
    ptx::barrier_wait(shared_.full_first(stages_.stage), stages_.parity);
    if constexpr (kRepair) clear_step();
    issue_dots<Config>(scores, shared_.own(idx_, 0), shared_.step(stages_.stage, 0));
  }

  /// What the gradients of the scores of the step before add, as one group.
  __device__ __forceinline__ void issue_gradients() {
    const int stage = previous_stage_;
    issue_rows<Config>(first_sums_, gradients_.d_scores, shared_.step(stage, 0));
    if constexpr (kKeys)
      issue_rows<Config>(first_sums_, gradients_.d_t, shared_.step(stage, 1));
    else
      issue_rows<Config>(last_sums_, gradients_.d_t, shared_.step(stage, 0));
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void pin_sums() {
    ptx::pin(first_sums_);
    if constexpr (!kKeys) ptx::pin(last_sums_);
  }

  // --- the steps of a tile ---

  __device__ __forceinline__ void run_tile() {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) first_sums_[i] = last_sums_[i] = 0.0f;
    const AttentionCall& call = params_.call.attention;
    const Tile tile = shared_.load_tile(slots_.stage);
    const Steps all = steps_of<Pass::kRows>(call, tile, tile.first_row, Pass::kTileRows);
    const Steps own =
        steps_of<Pass::kRows>(call, tile, tile.first_row + idx_ * kBackwardRows, kBackwardRows);
    const StepRange range = range_of<Pass::kRows>(all, own);
    const int count = all.end - all.begin;
    const int num_heads = kKeys ? call.group : 1;
#pragma unroll 1
    for (int head = 0; head < num_heads; ++head) {
      const bool is_last = head == num_heads - 1;
      if (range.begin == range.end) {
        if (is_last) release(shared_.empty_own(idx_));
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
      if (is_last) release(shared_.empty_own(idx_));  // the next tile's may come
      last_gradients();
      skip_steps(count - range.end);
    }
  }

  /// Steps that only the other consumer needs.
  __device__ __forceinline__ void skip_steps(int count) {
#pragma unroll 1
    for (int idx = 0; idx < count; ++idx) {
      ptx::barrier_wait(shared_.full_first(stages_.stage), stages_.parity);
      ptx::barrier_wait(shared_.full_last(stages_.stage), stages_.parity);
      if constexpr (kRepair) clear_step();
      release(shared_.empty_first(stages_.stage));
      release(shared_.empty_last(stages_.stage));
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
    const int stage = stages_.stage;
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
    release(shared_.empty_last(stage));
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
    issue_dots<Config>(t, shared_.own(idx_, 0), shared_.step(stage, 1));
    ptx::barrier_wait(shared_.full_last(stage), stages_.parity);
    issue_dots<Config>(g, shared_.own(idx_, 1), shared_.step(stage, 2));
    ptx::wgmma_wait<1>();
    ptx::pin(t);
    slopes_of<Pass>(t, weights, constants, visible, params_.call.attention.softmax_scale, pairs);
    issue_rows<Config>(last_sums_, pairs.value_weights, shared_.step(stage, 2));
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
    issue_dots<Config>(t, shared_.own(idx_, 1), shared_.step(stage, 0));
    ptx::barrier_wait(shared_.full_last(stage), stages_.parity);
    issue_dots<Config>(g, shared_.own(idx_, 2), shared_.step(stage, 1));
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

  template <bool kMasked>
  __device__ __forceinline__ VisibleColumns<kMasked> visible_columns() const {
    VisibleColumns<kMasked> visible{};
    if constexpr (kMasked) {
      const Tile tile = shared_.load_tile(slots_.stage);
      const int row = tile.first_row + idx_ * kBackwardRows + fragment_row();
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
      const int row = tile.first_row + idx_ * kBackwardRows + fragment_row() + 8 * half;
      const bool exists = row < (kKeys ? tile.num_keys : tile.num_queries);
      const int64_t token = (kKeys ? tile.key_row : tile.query_row) + row;
      const auto store = [&](const Operand<void>& target, const float(&sums)[kHeadDim / 2],
                             float factor) {
        uint32_t not_finite = 0;
        write_row_words<kHeadDim>(
            static_cast<Element*>(target.data) + tile.batch * target.batch_stride +
                token * target.token_stride + tile.head * target.head_stride,
            exists, [&](int b) {
              const uint32_t pair =
                  ptx::pack_pair<Element>(__fmul_rn(sums[4 * b + 2 * half], factor),
                                          __fmul_rn(sums[4 * b + 2 * half + 1], factor));
              not_finite = ptx::add_zero_times<Element>(pair, not_finite);
              return pair;
            });
        is_finite &= !exists || (not_finite & 0x7fff7fff) == 0;
      };
      if constexpr (kRepair) poison(tile, row, half);
      store(kKeys ? call.dk : call.dq, first_sums_, power);
      store(kKeys ? call.dv : call.dr, last_sums_, last_factor);
    }
    if (!kRepair && __any_sync(~0u, !is_finite) && threadIdx.x % 32 == 0)
      params_.flagged_tiles[atomicAdd(&params_.workspace->num_flagged, 1u)] = tile.number;
  }

  // --- repair: a first launch flags tiles with results that are not finite ---

  /// 0 for every NaN and infinity of a step's tiles, by both consumers.
  __device__ __forceinline__ void clear_step() const {
    ptx::barrier_wait(shared_.full_last(stages_.stage), stages_.parity);
    clear_tiles<Pass>(shared_.step(stages_.stage, 0));
  }

  /// A row that meets a row with such numbers gets NaNs.
  __device__ __forceinline__ void poison(const Tile& tile, int row, int half) {
    if (!meets_bad_row<Pass>(params_, tile, row)) return;
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i)
      if (i / 2 % 2 == half) first_sums_[i] = last_sums_[i] = NAN;
  }

  const PassParams& params_;
  const BackwardShared<Pass>& shared_;
  const int idx_;  // of this warpgroup among the consumers

  Ring<2> slots_;
  Ring<Pass::kStages> stages_;
  int previous_stage_ = 0;  // of the step before
  int step_ = 0;
  float first_sums_[kHeadDim / 2], last_sums_[kHeadDim / 2];  // dk, dv or dq, dr
  GradientPairs gradients_;                                   // of the step before
};

}  // namespace parallax::cuda::sm90
