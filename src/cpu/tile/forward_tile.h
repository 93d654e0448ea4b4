// Forward for one tile of rows: online softmax over tiles of keys, with the covariance sums beside
// the softmax sums. Rows are in the vector lanes, so that maxima, sums and exponentials need no
// horizontal step, and both score matrices and both value products are one matrix product each:
//   [S | T] = K [Q | R]      [O1 | O2] += V' [P | P (t - centre)]
// The covariance score is centred per row by its weighted mean over the first tile with a visible
// key: out does not depend on the centre, but O2's rounding does, and one visible key gives
// out = v exactly. docs/math.md, streaming form and centring.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/visibility.h"

namespace parallax::cpu {
namespace {

PLX_INLINE int padded_dim(int head_dim) { return (head_dim + kPadding - 1) / kPadding * kPadding; }

/// Hands out pieces of the scratch memory; each stays 64-byte aligned.
struct ScratchCursor {
  float* next;
  float* take(int64_t count) {
    float* const piece = next;
    next += (count + 15) / 16 * 16;
    return piece;
  }
  /// The same in 16-bit numbers.
  uint16_t* take_halves(int64_t count) { return reinterpret_cast<uint16_t*>(take(count / 2)); }
};

/// One tile of scores, [num_keys][2 kRows], with the rows of one vector in view.
template <int kRows>
struct ScoreTile {
  float* scores;
  int64_t num_keys;
  float softmax_scale;
  bool masked;
  int32_t begin[kRows], end[kRows];  // visible keys of each row, relative to the tile

  /// sums[d][lane] += sum_key rows[key][d] scores[key][lane], both halves of the lanes.
  void add_product(float* sums, const FloatRows& rows, int head_dim, float* spare) const {
    if (!masked) {
      add_transposed_product<2 * kRows>(sums, rows, scores, {head_dim, num_keys});
      return;
    }
    const auto visible = [this](int64_t key, int lane) {
      return begin[lane % kRows] <= key && key < end[lane % kRows];
    };
    add_visible_product<2 * kRows>(sums, rows, scores, {head_dim, num_keys}, spare, visible);
  }
};

/// s <- s scale, or -inf where the row does not see the key (t <- 0 there, which may stand
/// beside a NaN). Returns the maximum over the tile and `running_max`.
template <int kRows, int kWidth>
PLX_INLINE Floats<kWidth> scale_and_mask(const ScoreTile<kRows>& tile, int lane,
                                         Floats<kWidth> running_max) {
  using F = Floats<kWidth>;
  using I = Ints<kWidth>;
  float* row = tile.scores + lane;
  if (!tile.masked) {
    for (int64_t key = 0; key < tile.num_keys; ++key, row += 2 * kRows) {
      const F s = load<F>(row) * tile.softmax_scale;
      store(row, s);
      running_max = s > running_max ? s : running_max;
    }
    return running_max;
  }
  const I begin = load<I>(tile.begin + lane);
  const I end = load<I>(tile.end + lane);
  for (int32_t key = 0; key < tile.num_keys; ++key, row += 2 * kRows) {
    const I visible = (begin <= key) & (end > key);
    const F s = visible ? load<F>(row) * tile.softmax_scale : splat<kWidth>(-kInfinity);
    const F t = visible ? load<F>(row + kRows) : F{};
    store(row, s);
    store(row + kRows, t);
    running_max = s > running_max ? s : running_max;
  }
  return running_max;
}

/// The weighted mean of t over the tile, 0 for rows that see none of its keys. `scale` multiplies
/// the scores as they stand.
template <int kRows, int kWidth>
PLX_INLINE Floats<kWidth> tile_t_mean(const ScoreTile<kRows>& tile, int lane, Floats<kWidth> max,
                                      float scale) {
  using F = Floats<kWidth>;
  F weight{}, t_sum{};
  const float* row = tile.scores + lane;
  for (int64_t key = 0; key < tile.num_keys; ++key, row += 2 * kRows) {
    const F p = exponential<kWidth>(load<F>(row) * scale - max);
    weight += p;
    t_sum += p * load<F>(row + kRows);
  }
  return weight > 0.0f ? t_sum / weight : F{};
}

/// Turns scores into [P | P (t - centre)] in place, updates the running statistics of all rows, and
/// writes by what the old sums must be multiplied.
template <int kRows>
static void softmax_step(const ScoreTile<kRows>& tile, const TileState& state, float* rescale) {
  constexpr int kWidth = kRows < kVectorFloats ? kRows : kVectorFloats;
  using F = Floats<kWidth>;
  for (int lane = 0; lane < kRows; lane += kWidth) {
    const F old_max = load<F>(state.max + lane);
    const F max = scale_and_mask<kRows, kWidth>(tile, lane, old_max);
    const F safe_max = max == -kInfinity ? F{} : max;  // no key yet: exp(-inf - 0) = 0
    F centre = load<F>(state.centre + lane);
    const Ints<kWidth> fresh = (old_max == -kInfinity) & (max > -kInfinity);
    if (any<kWidth>(fresh)) {
      centre = fresh ? tile_t_mean<kRows, kWidth>(tile, lane, safe_max, 1.0f) : centre;
      store(state.centre + lane, centre);
    }
    F weight{}, t_sum{};
    float* row = tile.scores + lane;
    for (int64_t key = 0; key < tile.num_keys; ++key, row += 2 * kRows) {
      const F p = exponential<kWidth>(load<F>(row) - safe_max);
      const F u = p * (load<F>(row + kRows) - centre);
      store(row, p);
      store(row + kRows, u);
      weight += p;
      t_sum += u;
    }
    const F alpha = exponential<kWidth>(old_max - safe_max);
    store(rescale + lane, alpha);
    store(state.max + lane, max);
    store(state.weight + lane, load<F>(state.weight + lane) * alpha + weight);
    store(state.t_sum + lane, load<F>(state.t_sum + lane) * alpha + t_sum);
  }
}

/// sums[d][:] *= factor, both halves.
template <int kRows>
static void rescale_sums(float* sums, const float* factor, int head_dim) {
  constexpr int kWidth = kRows < kVectorFloats ? kRows : kVectorFloats;
  using F = Floats<kWidth>;
  for (int d = 0; d < 2 * head_dim; ++d)
    for (int lane = 0; lane < kRows; lane += kWidth) {
      float* const sum = sums + d * kRows + lane;
      store(sum, load<F>(sum) * load<F>(factor + lane));
    }
}

/// panel[Dp][2 kRows] = [Q | R], the rows of q in the left lanes and of r in the right ones.
template <int kRows>
static void load_query_panel(const TileInputs& inputs, const QueryTile& tile, float* rows,
                             float* panel) {
  const int padded = padded_dim(inputs.head_dim);
  load_rows(rows, inputs.q, tile, inputs.group, inputs.head_dim, padded, kRows);
  load_rows(rows + kRows * padded, inputs.r, tile, inputs.group, inputs.head_dim, padded, kRows);
  transpose(panel, 2 * kRows, rows, padded, 2 * kRows, padded);
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

template <int kRows>
static void forward_tile(const TileInputs& inputs, const QueryTile& tile, const TileState& state,
                         float* scratch) {
  constexpr int kLanes = 2 * kRows;
  const int head_dim = inputs.head_dim;
  const int padded = padded_dim(head_dim);
  ScratchCursor cursor{scratch};
  float* const key_rows = cursor.take(2 * kKeyTile * padded);  // first the rows of q and r
  float* const panel = cursor.take(kLanes * padded);
  float* const spare = cursor.take(kKeyTile * padded);
  float* const rescale = cursor.take(kRows);
  ScoreTile<kRows> scores{.scores = cursor.take(kKeyTile * kLanes),
                          .num_keys = 0,
                          .softmax_scale = inputs.softmax_scale,
                          .masked = false,
                          .begin = {},
                          .end = {}};
  load_query_panel<kRows>(inputs, tile, key_rows, panel);
  const RowLimits<kRows> limits = row_limits<kRows>(inputs.band, tile, inputs.group);

  start_state(state, kRows, padded);

  for (int64_t key = tile.key_begin; key < tile.key_end; key += kKeyTile) {
    const int64_t left = tile.key_end - key;
    scores.num_keys = left < kKeyTile ? left : kKeyTile;
    const FloatRows k = load_keys(inputs.k, key, scores.num_keys, head_dim, padded, key_rows);
    set_product<kLanes>(scores.scores, k, panel, {scores.num_keys, head_dim});
    scores.masked = limits.cut(key, scores.num_keys);
    if (scores.masked) limits.relative(key, scores.begin, scores.end);
    softmax_step<kRows>(scores, state, rescale);
    if (key != tile.key_begin) rescale_sums<kRows>(state.sums, rescale, head_dim);
    const FloatRows v =
        load_keys(inputs.v, key, scores.num_keys, head_dim, padded, key_rows + kKeyTile * padded);
    scores.add_product(state.sums, v, head_dim, spare);
  }
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
