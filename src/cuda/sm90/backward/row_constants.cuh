// What the gradients of a query's scores need beside the scores. The pass over queries, which comes
// first, computes it for its own rows and leaves it to the pass over keys. With p2 =
// 2^kWeightPower p and g = d_out.v:
//   p2 = 2^(scale_log2 q.k - lse2)         lse2   = lse / ln 2 - kWeightPower
//   a  = slope - scale t                   slope  = scale (1 + t_mean)
//   ds = p2 (a (g - g_mean) + offset)      g_mean = d_out.out_softmax
//   dt = -p2 (g - g_mean)                  offset = scale (g_mean - d_out.out)
// These are scale ds and dt of docs/math.md (backward), times 2^kWeightPower. A query that sees no
// key, or does not exist, has lse2 = inf and zeros.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/device/ptx/registers.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/sm90/backward/config.h"
#include "cuda/sm90/backward/kernel.h"
#include "cuda/sm90/backward/shared.cuh"
#include "cuda/sm90/tile.cuh"

namespace parallax::cuda::sm90 {

enum RowConstant : int { kLse2, kSlope, kGradientMean, kOffset };

constexpr int kConstantFloats = 4 * kBackwardRows;  // of a group

/// Of one query head, from the first group of the tile's sequence on. Packed: its first slot of
/// device/tile_slots.cuh, as the tiles of 64 queries have them.
__device__ __forceinline__ float* constants_of(const PassParams& params, const Tile& tile,
                                               int head_q) {
  const AttentionCall& call = params.call.attention;
  const int32_t* const cu_seqlens = call.sequences.cu_seqlens_q;
  int64_t head = head_q, first = 0;
  if (cu_seqlens != nullptr)
    first = first_slot({.cu_seqlens = cu_seqlens,
                        .num_sequences = call.sequences.num_sequences,
                        .tiles_per_sequence = 0,
                        .rows_per_token = 1,
                        .tile_rows = kBackwardRows,
                        .count = 0},
                       tile.sequence_idx);
  else
    head += tile.sequence_idx * int64_t{call.num_heads_q};
  return params.constants + (head * params.constants_per_head + first) * kConstantFloats;
}

/// The 16 rows of a warp. A row has kLanes lanes of 8 columns each.
template <class Config>
class WarpRows {
 public:
  using Element = typename Config::Element;
  static constexpr int kRows = 16;

  __device__ __forceinline__ WarpRows(const PassParams& params, const Tile& tile, int first_row)
      : params_(params),
        tile_(tile),
        first_row_(first_row),
        // Else ptxas would keep what follows from it over the loops of all tiles.
        lane_(static_cast<int>(ptx::not_kept(threadIdx.x % 32))) {}

  /// Of out and out_softmax; nothing waits for it yet.
  __device__ __forceinline__ void load() {
#pragma unroll
    for (int idx = 0; idx < kTurns; ++idx) {
      out_[idx] = columns(params_.call.out, row_of(idx));
      out_softmax_[idx] = columns(params_.call.out_softmax, row_of(idx));
    }
    const int row = lane_row();
    lse_ = statistic(params_.call.lse, row);
    t_mean_ = statistic(params_.call.t_mean, row);
  }

  /// `d_out`: 64 rows in shared memory, of which the warp's begin at `warp_row`. Writes to
  /// shared[4][64] at `constants` and, unless null, to `group`, alike.
  __device__ __forceinline__ void store(uint32_t d_out, int warp_row, uint32_t constants,
                                        float* group) const {
    float gradient_mean = 0.0f, out_gradient = 0.0f;  // of lane_row()
#pragma unroll
    for (int idx = 0; idx < kTurns; ++idx) {
      const int4 gradient = shared_columns(d_out, warp_row + row_of(idx));
      const float of_softmax = dot_of_row(gradient, out_softmax_[idx]);
      const float of_out = dot_of_row(gradient, out_[idx]);
      if (lane_ % kTurns == idx) gradient_mean = of_softmax, out_gradient = of_out;
    }
    constexpr float kLog2e = 1.44269504f;
    const float scale = params_.call.attention.softmax_scale;
    const bool sees_keys = first_row_ + lane_row() < tile_.num_queries && lse_ != -INFINITY;
    float values[4];
    values[kLse2] = lse_ * kLog2e - Config::kWeightPower;
    values[kSlope] = scale * (1.0f + t_mean_);
    values[kGradientMean] = gradient_mean;
    values[kOffset] = scale * (gradient_mean - out_gradient);
    // What is not finite makes all that the query touches NaN: it is not silent.
    const float sum = values[0] + values[1] + values[2] + values[3];
    const bool is_finite = fabsf(sum) < INFINITY;
#pragma unroll
    for (int which = 0; which < 4; ++which) {
      const int place = which * kBackwardRows + warp_row + lane_row();
      const float of_none = which == kLse2 ? INFINITY : 0.0f;
      const float value = !sees_keys ? of_none : (is_finite ? values[which] : NAN);
      ptx::store_shared_float(constants + place * 4, value);
      if (group != nullptr) group[place] = value;
    }
  }

 private:
  static constexpr int kLanes = Config::kHeadDim > 128 ? 32 : (Config::kHeadDim > 64 ? 16 : 8);
  static constexpr int kRowsAtOnce = 32 / kLanes;
  static constexpr int kTurns = kRows / kRowsAtOnce;
  static constexpr int kPieces = Config::kHeadDim / 8;  // of a row
  static_assert(kPieces <= kLanes && kTurns <= kLanes);

  __device__ __forceinline__ int row_of(int idx) const {
    return idx * kRowsAtOnce + lane_ / kLanes;
  }
  /// The one whose constants this lane writes. With more lanes than rows several write the same:
  /// after a branch of some lanes ptxas would serialise the products.
  __device__ __forceinline__ int lane_row() const { return row_of(lane_ % kTurns); }

  /// Lanes beyond the head size read its last piece, times zeros.
  __device__ __forceinline__ int piece() const { return min(lane_ % kLanes, kPieces - 1); }

  /// In the tensors; rows beyond the last are read as the tile's first.
  __device__ __forceinline__ int64_t token(int row) const {
    return tile_.query_row +
           (first_row_ + row < tile_.num_queries ? first_row_ + row : tile_.first_row);
  }
  __device__ __forceinline__ uint4 columns(const Operand<const void>& operand, int row) const {
    const auto* const numbers =
        static_cast<const Element*>(operand.data) + tile_.batch * operand.batch_stride +
        token(row) * operand.token_stride + tile_.head * operand.head_stride;
    const uint4 words = reinterpret_cast<const uint4*>(numbers)[piece()];
    return lane_ % kLanes < kPieces ? words : uint4{};
  }
  __device__ __forceinline__ float statistic(const Statistic<const float>& values, int row) const {
    return values.data[tile_.batch * values.batch_stride + token(row) * values.token_stride +
                       tile_.head * values.head_stride];
  }
  __device__ __forceinline__ int4 shared_columns(uint32_t rows, int row) const {
    return ptx::load_shared_int4(ptx::swizzled(rows + piece() / 8 * Config::kChunkBytes +
                                               row * Config::kRowBytes + piece() % 8 * 16));
  }
  /// The sum over the columns of a b, in this thread and then in the lanes of the row.
  static __device__ __forceinline__ float dot_of_row(const int4& a, const uint4& b) {
    const int as[] = {a.x, a.y, a.z, a.w};
    const uint32_t bs[] = {b.x, b.y, b.z, b.w};
    float sum = 0.0f;
#pragma unroll
    for (int idx = 0; idx < 4; ++idx) {
      const float2 x = ptx::unpack_pair<Element>(static_cast<uint32_t>(as[idx]));
      const float2 y = ptx::unpack_pair<Element>(bs[idx]);
      sum = fmaf(x.y, y.y, fmaf(x.x, y.x, sum));
    }
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    return sum;
  }

  const PassParams& params_;
  const Tile& tile_;
  const int first_row_;  // of the warp in its sequence
  const int lane_;
  uint4 out_[kTurns], out_softmax_[kTurns];
  float lse_, t_mean_;
};

/// A consumer of the pass over queries waits for its operands, while it loads what its row
/// constants are made of, and makes them.
template <class Pass>
__device__ __forceinline__ void start_queries(const PassParams& params,
                                              const BackwardShared<Pass>& shared, const Tile& tile,
                                              int consumer, int parity) {
  using Rows = WarpRows<typename Pass::Config>;
  const int set = Pass::own_set(consumer);
  const int set_row = tile.first_row + set * kBackwardRows;
  const int warp_row = static_cast<int>(threadIdx.x) % 128 / 32 * Rows::kRows;
  Rows rows(params, tile, set_row + warp_row);
  rows.load();
  ptx::barrier_wait(shared.full_own(set), parity);
  float* group = nullptr;  // the second consumer of the same rows need not write
  if (set_row < tile.num_queries && consumer == set)
    group = constants_of(params, tile, tile.head) + set_row / kBackwardRows * kConstantFloats;
  rows.store(shared.own(set, 2), warp_row, shared.constants(consumer), group);
  __syncwarp();
}

}  // namespace parallax::cuda::sm90
