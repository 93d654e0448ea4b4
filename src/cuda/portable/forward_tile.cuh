// Forward for one tile of rows over a range of keys: online softmax, with the covariance sums
// beside the softmax sums. Per step of keys
//   S = Q K'   T = R K'   P = exp(S - max)   O1 += P V   O2 += P (T - centre) V
// where a row's centre is the weighted mean of its T over the first step with a key that it sees
// (docs/math.md, centring). O1 and O2 stay in registers; every step is summed from zero and then
// added, which keeps the rounding of long sums small. Steps begin at multiples of kItems keys, so
// that a row's result does not depend on the tile that it is in. The exponential is expf of the
// CUDA library without fast maths: at most 1 ulp off, exactly 1 at 0.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "cuda/portable/row_tile.cuh"

namespace parallax::cuda::portable {

constexpr float kInfinity = INFINITY;

/// The running statistics of a row; its four threads hold the same.
struct RowState {
  float max = -kInfinity;
  float weight = 0.0f;  // sum of exp(s - max)
  float t_sum = 0.0f;   // sum of exp(s - max) (t - centre)
  float centre = 0.0f;
};

__device__ __forceinline__ int state_row() { return threadIdx.x / kThreadsPerRow; }

/// A thread's part of a tile's state: its row's statistics, and its columns of its four rows' sums.
template <typename Shape>
struct ForwardState {
  RowState row{};
  PartSums sums[Shape::kChunks][2] = {};  // O1, O2
};

/// Numbers per row that threads exchange.
template <int kRows>
struct RowExchange {
  float factors[3][kRows];
  ItemRange visible[kRows];
};

template <typename Shape>
struct ForwardMemory {
  typename Shape::Resident q, r;
  typename Shape::Stream stream;
  typename Shape::Weights weights[2];  // S and T, then P and P (T - centre)
  RowExchange<Shape::kRows> rows;
};

struct ForwardSources {
  Source<KeyRows> k, v;
};

__device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

/// exp(s - max) is taken from here, so that rows without a key so far get exp(-inf - 0) = 0.
__device__ __forceinline__ float finite_max(float max) { return max == -kInfinity ? 0.0f : max; }

/// S and T of the step to shared memory: s scaled, hidden pairs with s = -inf and t = 0, whatever
/// the key holds.
template <typename Shape>
__device__ __forceinline__ void store_scores(const PairSums (&sums)[2], float softmax_scale,
                                             int first, ForwardMemory<Shape>& memory) {
#pragma unroll
  for (int i = 0; i < kPairRows; ++i) {
    const int row = pair_row<Shape>(i);
    const uint32_t visible = visible_bits(memory.rows.visible[row], first);
#pragma unroll
    for (int j = 0; j < kPairItems; ++j) {
      const int item = pair_item(j);
      const bool sees = has_bit(visible, item);
      // A product of its own: fused into a difference, s - max would not be 0 at the maximum.
      memory.weights[0].of[item][row] = sees ? __fmul_rn(sums[0][i][j], softmax_scale) : -kInfinity;
      memory.weights[1].of[item][row] = sees ? sums[1][i][j] : 0.0f;
    }
  }
}

/// S and T become P and P (T - centre), in place. Updates the row's statistics and leaves by what
/// its old sums must be multiplied in factors[0].
template <typename Shape>
__device__ __forceinline__ void softmax_step(ForwardMemory<Shape>& memory, RowState& state) {
  constexpr int kCount = kItems / kThreadsPerRow;
  const int row = state_row();
  const int first = threadIdx.x % kThreadsPerRow;
  float p[kCount], t[kCount];
  float max = state.max;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    p[i] = memory.weights[0].of[first + i * kThreadsPerRow][row];
    t[i] = memory.weights[1].of[first + i * kThreadsPerRow][row];
    max = fmaxf(max, p[i]);
  }
  max = row_max(max);
  const float base = finite_max(max);
  float weight = 0.0f, t_sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    p[i] = expf(p[i] - base);
    weight += p[i];
    t_sum = fmaf(p[i], t[i], t_sum);
  }
  weight = row_sum(weight);
  t_sum = row_sum(t_sum);
  if (state.max == -kInfinity && max > -kInfinity) state.centre = t_sum / weight;
  t_sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float u = __fmul_rn(p[i], t[i] - state.centre);
    t_sum += u;
    memory.weights[0].of[first + i * kThreadsPerRow][row] = p[i];
    memory.weights[1].of[first + i * kThreadsPerRow][row] = u;
  }
  const float rescale = expf(state.max - base);
  if (first == 0) memory.rows.factors[0][row] = rescale;
  state.weight = fmaf(state.weight, rescale, weight);
  state.t_sum = fmaf(state.t_sum, rescale, row_sum(t_sum));
  state.max = max;
}

/// Adds the keys of `range` to the state. `range` begins at a multiple of kItems, or where the
/// first key that the tile sees is in it; it ends at a multiple or behind the last key.
template <typename Shape>
__device__ __forceinline__ void forward_keys(const AttentionCall& call, const RowTile& tile,
                                             const ForwardSources& from, const ItemRange& range,
                                             ForwardMemory<Shape>& memory,
                                             ForwardState<Shape>& state) {
  const Visibility<Shape::kRows> visible{memory.rows.visible, common_keys(call, tile)};
  for (int first = range.begin / kItems * kItems; first < range.end; first += kItems) {
    PairSums scores[2] = {};
#pragma unroll 1
    for (int chunk = 0; chunk * kColumns < call.head_dim; ++chunk) {
      load_stream<Shape>(memory.stream, from.k, first, range, chunk);
      add_products<Shape, 2>(scores, {&memory.q, &memory.r}, memory.stream, chunk);
    }
    store_scores<Shape>(scores, call.softmax_scale, first, memory);
    __syncthreads();
    softmax_step<Shape>(memory, state.row);
#pragma unroll 1
    for (int chunk = 0; chunk * kColumns < call.head_dim; ++chunk) {
      load_stream<Shape>(memory.stream, from.v, first, range, chunk);
      PartSums part[2] = {};
      add_weighted<Shape, 2>(part, memory.weights, memory.stream, visible, first);
      float rescale[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) rescale[i] = memory.rows.factors[0][part_row() + i];
      add_parts(state.sums, chunk, part, rescale);
    }
  }
}

/// The tile's rows of q and r, and what they see. Ends with a barrier.
template <typename Shape>
__device__ __forceinline__ void start_forward(const AttentionCall& call, const RowTile& tile,
                                              ForwardMemory<Shape>& memory) {
  const ItemRange rows{tile.first_row, tile.first_row + tile.num_rows};
  load_resident<Shape>(memory.q, query_source(call.q, call, tile), tile.first_row, rows);
  load_resident<Shape>(memory.r, query_source(call.r, call, tile), tile.first_row, rows);
  set_visible<Shape::kRows>(call, tile, memory.rows.visible);
}

/// lse and t_mean of a row; -inf and 0 for one without keys. A row whose scores are all -inf has
/// weight 0 too, but keys: 0 / 0 is NaN.
__device__ __forceinline__ void store_statistics(const ForwardCall& call, const RowTile& tile,
                                                 int row, const ItemRange& visible,
                                                 const RowState& state) {
  const bool empty = visible.begin >= visible.end;
  if (call.t_mean.data != nullptr) {
    const QueryRows rows = query_rows(call.t_mean, tile.sequence, tile.head_kv, tile.group);
    call.t_mean.data[rows.at(tile.first_row + row)] =
        empty ? 0.0f : state.centre + state.t_sum / state.weight;
  }
  if (call.lse.data != nullptr) {
    const QueryRows rows = query_rows(call.lse, tile.sequence, tile.head_kv, tile.group);
    const float lse = state.weight == 0.0f ? NAN : state.max + logf(state.weight);
    call.lse.data[rows.at(tile.first_row + row)] = empty ? -kInfinity : lse;
  }
}

/// out_softmax = O1 / d1, out = out_softmax (1 + d2 / d1) - O2 / d1, and the statistics.
template <typename Shape>
__device__ __forceinline__ void finish_forward(const ForwardCall& call, const RowTile& tile,
                                               RowExchange<Shape::kRows>& exchange,
                                               const ForwardState<Shape>& state) {
  const int own_row = state_row();
  const ItemRange visible = exchange.visible[own_row];
  const float own_scale = visible.begin < visible.end ? 1.0f / state.row.weight : 0.0f;
  __syncthreads();
  if (threadIdx.x % kThreadsPerRow == 0) {
    exchange.factors[0][own_row] = own_scale;
    exchange.factors[1][own_row] = fmaf(state.row.t_sum, own_scale, 1.0f);
    if (own_row < tile.num_rows) store_statistics(call, tile, own_row, visible, state.row);
  }
  __syncthreads();
  const Elements<void> out = elements_of(call.out, call.attention);
  const Elements<void> out_softmax = elements_of(call.out_softmax, call.attention);
  const QueryRows out_rows = query_rows(call.out, tile.sequence, tile.head_kv, tile.group);
  const QueryRows softmax_rows =
      query_rows(call.out_softmax, tile.sequence, tile.head_kv, tile.group);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = part_row() + i;
    if (row >= tile.num_rows) continue;
    const float scale = exchange.factors[0][row], t_factor = exchange.factors[1][row];
#pragma unroll
    for (int chunk = 0; chunk < Shape::kChunks; ++chunk) {
      const int column = chunk * kColumns + part_column();
      float o1[4], o2[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        o1[j] = __fmul_rn(state.sums[chunk][0][i][j], scale);
        o2[j] = fmaf(o1[j], t_factor, -__fmul_rn(state.sums[chunk][1][i][j], scale));
      }
      store_four(out, out_rows.at(tile.first_row + row), column, o2);
      if (out_softmax.data != nullptr)
        store_four(out_softmax, softmax_rows.at(tile.first_row + row), column, o1);
    }
  }
}

}  // namespace parallax::cuda::portable
