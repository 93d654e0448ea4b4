// The running sums of a tile of rows (kernels.h, TileState): started, cut into the parts of a tile,
// merged over disjoint keys, and turned into outputs.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/visibility.h"

namespace parallax::cpu {
namespace {

PLX_INLINE int padded_dim(int head_dim) { return (head_dim + kPadding - 1) / kPadding * kPadding; }

/// Part `idx` of a tile: the keys are those that its own rows see.
template <int kRows>
PLX_INLINE QueryTile tile_part(const TileInputs& inputs, const QueryTile& tile, int idx) {
  QueryTile part = tile;
  part.first_row += idx * kRows;
  const int64_t left = tile.num_rows - idx * kRows;
  part.num_rows = left < kRows ? left : kRows;
  const int64_t last_row = part.first_row + part.num_rows - 1;
  const int64_t begin = band_begin(inputs.band, part.first_row / inputs.group);
  const int64_t end = band_end(inputs.band, last_row / inputs.group);
  if (begin > part.key_begin) part.key_begin = begin;
  if (end < part.key_end) part.key_end = end;
  return part;
}

/// The state of part `idx` of a tile of several parts.
template <int kRows>
PLX_INLINE TileState state_part(const TileState& state, int idx, int padded) {
  return {.sums = state.sums + idx * 2 * kRows * padded,
          .max = state.max + idx * kRows,
          .weight = state.weight + idx * kRows,
          .t_sum = state.t_sum + idx * kRows,
          .centre = state.centre + idx * kRows,
          .rounded_weight = state.rounded_weight + idx * kRows,
          .rounded_t_sum = state.rounded_t_sum + idx * kRows};
}

/// The state before the first key. `padded` rows of sums.
static void start_state(const TileState& state, int rows, int padded) {
  for (int row = 0; row < rows; ++row) {
    state.max[row] = -kInfinity;
    state.weight[row] = state.t_sum[row] = state.centre[row] = 0.0f;
    state.rounded_weight[row] = state.rounded_t_sum[row] = 0.0f;
  }
  for (int64_t idx = 0; idx < static_cast<int64_t>(padded) * 2 * rows; ++idx)
    state.sums[idx] = 0.0f;
}

/// Adds the sums of two disjoint sets of keys. `other` is moved to this state's centre, or this
/// empty state takes the other's. kRounded: the states come from kernels that round their weights.
template <int kRows, bool kRounded = false>
static void merge_tile(const TileState& state, const TileState& other, int head_dim) {
  for (int row = 0; row < kRows; ++row) {
    if (other.weight[row] == 0.0f) continue;
    if (state.weight[row] == 0.0f) state.centre[row] = other.centre[row];
    const float max = state.max[row] > other.max[row] ? state.max[row] : other.max[row];
    const float shift = other.centre[row] - state.centre[row];
    float left_right[2];
    const Floats<4> exponents = {state.max[row] - max, other.max[row] - max, 0.0f, 0.0f};
    const Floats<4> factors = exponential<4>(exponents);
    left_right[0] = state.weight[row] == 0.0f ? 0.0f : factors[0];
    left_right[1] = factors[1];
    const auto add = [&](float* t_sum, const float* more_t, float* weight, const float* more) {
      t_sum[row] = t_sum[row] * left_right[0] + (more_t[row] + shift * more[row]) * left_right[1];
      weight[row] = weight[row] * left_right[0] + more[row] * left_right[1];
    };
    add(state.t_sum, other.t_sum, state.weight, other.weight);
    if (kRounded)
      add(state.rounded_t_sum, other.rounded_t_sum, state.rounded_weight, other.rounded_weight);
    state.max[row] = max;
    for (int d = 0; d < head_dim; ++d) {
      float* const sums = state.sums + 2 * kRows * d + row;
      const float* const more = other.sums + 2 * kRows * d + row;
      sums[kRows] = sums[kRows] * left_right[0] + (more[kRows] + shift * more[0]) * left_right[1];
      sums[0] = sums[0] * left_right[0] + more[0] * left_right[1];
    }
  }
}

/// out_softmax = O1 / d1, out = out_softmax (1 + d2 / d1) - O2 / d1, t_mean = centre + d2 / d1,
/// lse = max + log d1; zeros and -inf for a row without keys. A row whose scores are all -inf has
/// d1 = 0 too, but keys: 0 / 0 is NaN. kRounded as in merge_tile: d1 and d2 are the rounded sums in
/// out and out_softmax.
template <int kRows, bool kRounded = false>
static void finish_tile(const TileInputs& inputs, const QueryTile& tile, const TileState& state,
                        const ForwardOutputs& outputs, float* scratch) {
  const int padded = padded_dim(inputs.head_dim);
  float* const out_softmax = scratch;
  float* const out = scratch + kRows * padded;
  transpose(scratch, padded, state.sums, 2 * kRows, padded, 2 * kRows);
  for (int row = 0; row < tile.num_rows; ++row) {
    const int64_t token = (tile.first_row + row) / inputs.group;
    const bool empty = band_begin(inputs.band, token) >= band_end(inputs.band, token);
    const float weight = state.weight[row];
    const float divisor = kRounded ? state.rounded_weight[row] : weight;
    const float scale = empty ? 0.0f : 1.0f / divisor;
    const float t_mean = (kRounded ? state.rounded_t_sum[row] : state.t_sum[row]) * scale;
    float* const o1 = out_softmax + row * padded;
    float* const o2 = out + row * padded;
    for (int d = 0; d < inputs.head_dim; ++d) {
      o1[d] *= scale;
      o2[d] = o1[d] * (1.0f + t_mean) - o2[d] * scale;
    }
    if (outputs.t_mean.data != nullptr)
      *scalar_address(outputs.t_mean, tile.first_row + row, inputs.group) =
          empty ? 0.0f : state.centre[row] + state.t_sum[row] / state.weight[row];
    if (outputs.lse.data != nullptr)
      *scalar_address(outputs.lse, tile.first_row + row, inputs.group) =
          empty ? -kInfinity
                : static_cast<float>(static_cast<double>(state.max[row]) +
                                     __builtin_log(weight != 0.0f ? weight : __builtin_nan("")));
  }
  store_rows(outputs.out, out, tile, inputs.group, inputs.head_dim, padded);
  if (outputs.out_softmax.data != nullptr)
    store_rows(outputs.out_softmax, out_softmax, tile, inputs.group, inputs.head_dim, padded);
}

}  // namespace
}  // namespace parallax::cpu
