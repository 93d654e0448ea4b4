// What the gradients of a query's scores need beside the scores, computed once per call. With p2 =
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
#include "cuda/sm90/backward/config.h"
#include "cuda/sm90/backward/kernel.h"
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

constexpr int kConstantThreads = 256;

/// How a block takes a group: a query has kLanes lanes of 8 columns each, a thread kQueries
/// queries.
template <class Config>
struct ConstantShape {
  static constexpr int kLanes = Config::kHeadDim > 128 ? 32 : (Config::kHeadDim > 64 ? 16 : 8);
  static constexpr int kQueriesAtOnce = kConstantThreads / kLanes;
  static constexpr int kQueries = kBackwardRows / kQueriesAtOnce;
  static constexpr int kPieces = Config::kHeadDim / 8;
  static_assert(kPieces <= kLanes);
};

/// 8 columns of a query of d_out, out_softmax and out.
struct ConstantColumns {
  uint4 d_out, out_softmax, out;
};

/// The sum over the columns of a b, in this thread and then in the lanes of the query.
template <typename Element, int kLanes>
__device__ __forceinline__ float dot_of_row(const uint4& a, const uint4& b) {
  const uint32_t as[] = {a.x, a.y, a.z, a.w}, bs[] = {b.x, b.y, b.z, b.w};
  float sum = 0.0f;
#pragma unroll
  for (int idx = 0; idx < 4; ++idx) {
    const float2 x = ptx::unpack_pair<Element>(as[idx]), y = ptx::unpack_pair<Element>(bs[idx]);
    sum = fmaf(x.y, y.y, fmaf(x.x, y.x, sum));
  }
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  return sum;
}

/// One block for each group of each head.
template <class Config>
__global__ void __launch_bounds__(kConstantThreads)
    row_constants_kernel(const __grid_constant__ PassParams params) {
  using Shape = ConstantShape<Config>;
  using Element = typename Config::Element;
  constexpr float kLog2e = 1.44269504f;
  const BackwardCall& call = params.call;
  Tile tile{};
  if (!find_tile<TileRows::kQueries>(call.attention, params.schedule, kBackwardRows,
                                     static_cast<int>(blockIdx.x), tile))
    return;
  const int lane = threadIdx.x % Shape::kLanes, first = threadIdx.x / Shape::kLanes;
  const auto query_of = [&](int idx) { return first + idx * Shape::kQueriesAtOnce; };
  const auto token_of = [&](int idx) -> int64_t {  // the first one's for queries beyond the last
    const int query = tile.first_row + query_of(idx);
    return tile.query_row + (query < tile.num_queries ? query : tile.first_row);
  };

  // All loads first: the kernel waits for memory and little else.
  ConstantColumns columns[Shape::kQueries];
  float lse[Shape::kQueries], t_mean[Shape::kQueries];
#pragma unroll
  for (int idx = 0; idx < Shape::kQueries; ++idx) {
    const int64_t token = token_of(idx);
    const auto load = [&](const Operand<const void>& operand) {
      const auto* const row = static_cast<const Element*>(operand.data) +
                              tile.batch * operand.batch_stride + token * operand.token_stride +
                              tile.head * operand.head_stride;
      return lane < Shape::kPieces ? reinterpret_cast<const uint4*>(row)[lane] : uint4{};
    };
    const auto statistic = [&](const Statistic<const float>& values) {
      return values.data[tile.batch * values.batch_stride + token * values.token_stride +
                         tile.head * values.head_stride];
    };
    columns[idx] = {load(call.d_out), load(call.out_softmax), load(call.out)};
    lse[idx] = statistic(call.lse);
    t_mean[idx] = statistic(call.t_mean);
  }
  float* const group =
      constants_of(params, tile, tile.head) + tile.first_row / kBackwardRows * kConstantFloats;
  const float scale = call.attention.softmax_scale;
#pragma unroll
  for (int idx = 0; idx < Shape::kQueries; ++idx) {
    const ConstantColumns& row = columns[idx];
    const float gradient_mean = dot_of_row<Element, Shape::kLanes>(row.d_out, row.out_softmax);
    const float out_gradient = dot_of_row<Element, Shape::kLanes>(row.d_out, row.out);
    float constants[4] = {INFINITY, 0.0f, 0.0f, 0.0f};
    if (tile.first_row + query_of(idx) < tile.num_queries && lse[idx] != -INFINITY) {
      constants[kLse2] = lse[idx] * kLog2e - Config::kWeightPower;
      constants[kSlope] = scale * (1.0f + t_mean[idx]);
      constants[kGradientMean] = gradient_mean;
      constants[kOffset] = scale * (gradient_mean - out_gradient);
      // What is not finite makes all that the query touches NaN: it is not silent.
      const float sum = constants[0] + constants[1] + constants[2] + constants[3];
      if (!(fabsf(sum) < INFINITY))
        for (float& constant : constants) constant = NAN;
    }
    if (lane < 4)
      group[lane * kBackwardRows + query_of(idx)] =
          lane == 0 ? constants[0]
                    : (lane == 1 ? constants[1] : (lane == 2 ? constants[2] : constants[3]));
  }
}

}  // namespace parallax::cuda::sm90
