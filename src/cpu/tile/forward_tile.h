// Forward for one tile of rows: online softmax over tiles of keys, with the covariance sums beside
// the softmax sums. Rows are in the vector lanes, so that maxima, sums and exponentials need no
// horizontal step, and both score matrices and both value products are one matrix product each:
//   [S | T] = K [Q | R]      [O1 | O2] += V' [P | P (t - centre)]
// The covariance score is centred per row by its weighted mean over the first tile with a visible
// key: out does not depend on the centre, but O2's rounding does, and one visible key gives
// out = v exactly. docs/math.md, streaming form and centring.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/tile_state.h"

namespace parallax::cpu {
namespace {

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

/// kRows rows of a tile, with the keys that they see and their part of its state.
template <int kRows>
struct ForwardPart {
  QueryTile tile;
  TileState state;
  const float* panel;  // [Dp][2 kRows], of q beside r
  RowLimits<kRows> limits;
};

/// One tile of keys, from first_key on.
struct KeyRows {
  int64_t first_key;
  FloatRows k, v;
};

/// One tile of keys against one part. `scores` has their number and room for them.
template <int kRows>
static void forward_step(const TileInputs& inputs, const KeyRows& keys,
                         const ForwardPart<kRows>& part, ScoreTile<kRows>& scores, float* spare) {
  const int head_dim = inputs.head_dim;
  float rescale[kRows];
  set_product<2 * kRows>(scores.scores, keys.k, part.panel, {scores.num_keys, head_dim});
  scores.masked = part.limits.cut(keys.first_key, scores.num_keys);
  if (scores.masked) part.limits.relative(keys.first_key, scores.begin, scores.end);
  softmax_step<kRows>(scores, part.state, rescale);
  if (keys.first_key > part.tile.key_begin) rescale_sums<kRows>(part.state.sums, rescale, head_dim);
  scores.add_product(part.state.sums, keys.v, head_dim, spare);
}

/// Up to kParts parts of kRows rows, which go through the keys together.
template <int kRows, int kParts>
static void forward_tile(const TileInputs& inputs, const QueryTile& tile, const TileState& state,
                         float* scratch) {
  const int head_dim = inputs.head_dim;
  const int padded = padded_dim(head_dim);
  ScratchCursor cursor{scratch};
  float* const key_rows = cursor.take(2 * kKeyTile * padded);  // first the rows of q and r
  float* const spare = cursor.take(kKeyTile * padded);
  ScoreTile<kRows> scores{.scores = cursor.take(kKeyTile * 2 * kRows),
                          .num_keys = 0,
                          .softmax_scale = inputs.softmax_scale,
                          .masked = false,
                          .begin = {},
                          .end = {}};
  ForwardPart<kRows> parts[kParts];
  const int num_parts = static_cast<int>((tile.num_rows + kRows - 1) / kRows);
  for (int idx = 0; idx < num_parts; ++idx) {
    float* const panel = cursor.take(2 * kRows * padded);
    ForwardPart<kRows>& part = parts[idx];
    part.tile = tile_part<kRows>(inputs, tile, idx);
    part.state = state_part<kRows>(state, idx, padded);
    part.panel = panel;
    part.limits = row_limits<kRows>(inputs.band, part.tile, inputs.group);
    load_query_panel<kRows>(inputs, part.tile, key_rows, panel);
  }
  start_state(state, kParts * kRows, padded);

  for (int64_t key = tile.key_begin; key < tile.key_end; key += kKeyTile) {
    const int64_t left = tile.key_end - key;
    const int64_t num_keys = left < kKeyTile ? left : kKeyTile;
    const KeyRows keys{
        .first_key = key,
        .k = load_keys(inputs.k, key, num_keys, head_dim, padded, key_rows),
        .v = load_keys(inputs.v, key, num_keys, head_dim, padded, key_rows + kKeyTile * padded)};
    for (int idx = 0; idx < num_parts; ++idx) {
      const int64_t seen = parts[idx].tile.key_end - key;
      if (seen <= 0 || key + num_keys <= parts[idx].tile.key_begin) continue;
      scores.num_keys = seen < num_keys ? seen : num_keys;
      forward_step<kRows>(inputs, keys, parts[idx], scores, spare);
    }
  }
}

}  // namespace
}  // namespace parallax::cpu
