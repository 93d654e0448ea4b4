// Backward in two passes without atomics. Both recompute the scores of a tile and turn them into
//   p = exp(s scale - lse)     w = p (1 + t_mean - t)     g = d_out . v
//   ds = w (g - g_mean) + p (g_mean - d_out . out)     dt = -p (g - g_mean)
// Query pass, rows in the lanes:  [dQ | dR] += K' [scale ds | dt]
// Key pass, keys in the lanes:    dK += Q' (scale ds) + R' dt     dV += dO' w
// The key pass sums over the heads of the group inside the tile. docs/math.md, backward.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/forward_tile.h"

namespace parallax::cpu {
namespace {

/// Per-row constants of a tile, one array per number so that rows can be lanes.
template <int kRows>
struct RowConstants {
  float lse[kRows], t_mean[kRows], g_mean[kRows], g_mean_less[kRows];
};

/// sums[row] = d_out . other of each row, both as panels. The sum runs over d in the order of the
/// matrix products, so that it equals their d_out . v bit for bit where `other` equals v: a query
/// that sees one key gets zero gradients of its scores, not a rounding error times the rest.
template <int kRows>
static void panel_dots(float* sums, const float* d_out, const float* other, int head_dim) {
  using F = Floats<kVectorFloats>;
  for (int lane = 0; lane < kRows; lane += kVectorFloats) {
    F sum{};
    for (int d = 0; d < head_dim; ++d)
      sum = multiply_add(load<F>(d_out + d * kRows + lane), load<F>(other + d * kRows + lane), sum);
    store(sums + lane, sum);
  }
}

/// Fills the constants from d_out . out_softmax and d_out . out. Rows beyond the tile's last get
/// zeros.
template <int kRows>
static void set_row_constants(const BackwardInputs& inputs, const QueryTile& tile,
                              const float* dots_softmax, const float* dots,
                              RowConstants<kRows>& constants) {
  const int64_t group = inputs.tile.group;
  for (int row = 0; row < kRows; ++row) {
    constants.g_mean[row] = dots_softmax[row];
    constants.g_mean_less[row] = dots_softmax[row] - dots[row];
    constants.lse[row] = constants.t_mean[row] = 0.0f;
    if (row >= tile.num_rows) continue;
    const float lse = *scalar_address(inputs.lse, tile.first_row + row, group);
    constants.lse[row] = lse == -kInfinity ? 0.0f : lse;
    constants.t_mean[row] = *scalar_address(inputs.t_mean, tile.first_row + row, group);
  }
}

/// The same from the panel of d_out. `rows` and `panel` are work space of kRows rows.
template <int kRows>
static void load_row_constants(const BackwardInputs& inputs, const QueryTile& tile,
                               const float* d_out_panel, float* rows, float* panel,
                               RowConstants<kRows>& constants) {
  const int head_dim = inputs.tile.head_dim;
  const int padded = padded_dim(head_dim);
  const auto dots = [&](const RowTensor<const void>& tensor, float* sums) {
    load_rows(rows, tensor, tile, inputs.tile.group, head_dim, padded, kRows);
    transpose(panel, kRows, rows, padded, kRows, padded);
    panel_dots<kRows>(sums, d_out_panel, panel, head_dim);
  };
  float dots_softmax[kRows], dots_out[kRows];
  dots(inputs.out_softmax, dots_softmax);
  dots(inputs.out, dots_out);
  set_row_constants<kRows>(inputs, tile, dots_softmax, dots_out, constants);
}

template <int kRows>
static void store_row_stats(const RowConstants<kRows>& constants, const QueryTile& tile,
                            RowStats* stats) {
  for (int64_t row = 0; row < tile.num_rows; ++row)
    stats[tile.first_row + row] = {.lse = constants.lse[row],
                                   .t_mean = constants.t_mean[row],
                                   .g_mean = constants.g_mean[row],
                                   .g_mean_less = constants.g_mean_less[row]};
}

/// [S | T] -> [scale ds | dt] in place, rows in the lanes; g is [num_keys][kRows]. Hidden keys get
/// zeros at the end, whatever their scores and the row's constants are.
template <int kRows>
static void query_score_gradients(const ScoreTile<kRows>& tile, const float* g,
                                  const RowConstants<kRows>& constants, float softmax_scale) {
  constexpr int kWidth = kRows < kVectorFloats ? kRows : kVectorFloats;
  using F = Floats<kWidth>;
  using I = Ints<kWidth>;
  for (int lane = 0; lane < kRows; lane += kWidth) {
    const F lse = load<F>(constants.lse + lane);
    const F t_mean = load<F>(constants.t_mean + lane);
    const F g_mean = load<F>(constants.g_mean + lane);
    const F g_mean_less = load<F>(constants.g_mean_less + lane);
    const I begin = load<I>(tile.begin + lane);
    const I end = load<I>(tile.end + lane);
    float* row = tile.scores + lane;
    for (int32_t key = 0; key < tile.num_keys; ++key, row += 2 * kRows) {
      const F p = exponential<kWidth>(load<F>(row) * tile.softmax_scale - lse);
      const F p_deviation = p * (load<F>(g + key * kRows + lane) - g_mean);
      const F a = t_mean - load<F>(row + kRows) + 1.0f;
      F ds = (a * p_deviation + p * g_mean_less) * softmax_scale;
      F dt = -p_deviation;
      if (tile.masked) {
        const I visible = (begin <= key) & (end > key);
        ds = visible ? ds : F{};
        dt = visible ? dt : F{};
      }
      store(row, ds);
      store(row + kRows, dt);
    }
  }
}

static void backward_query_tile(const BackwardInputs& inputs, const QueryTile& tile,
                                const QueryGradients& gradients, float* scratch) {
  constexpr int kRows = kWideRows;
  const TileInputs& in = inputs.tile;
  const int head_dim = in.head_dim;
  const int padded = padded_dim(head_dim);
  ScratchCursor cursor{scratch};
  float* const key_rows = cursor.take(2 * kKeyTile * padded);  // first the rows of q and r
  float* const panel = cursor.take(2 * kRows * padded);
  float* const d_out_panel = cursor.take(kRows * padded);
  float* const sums = cursor.take(2 * kRows * padded);
  float* const spare = cursor.take(kKeyTile * padded);
  float* const g = cursor.take(kKeyTile * kRows);
  ScoreTile<kRows> scores{.scores = cursor.take(kKeyTile * 2 * kRows),
                          .num_keys = 0,
                          .softmax_scale = in.softmax_scale,
                          .masked = false,
                          .begin = {},
                          .end = {}};
  load_query_panel<kRows>(in, tile, key_rows, panel);
  load_rows(key_rows, inputs.d_out, tile, in.group, head_dim, padded, kRows);
  transpose(d_out_panel, kRows, key_rows, padded, kRows, padded);
  RowConstants<kRows> constants;
  load_row_constants<kRows>(inputs, tile, d_out_panel, key_rows, sums, constants);
  store_row_stats<kRows>(constants, tile, gradients.stats);
  const RowLimits<kRows> limits = row_limits<kRows>(in.band, tile, in.group);

  for (int64_t idx = 0; idx < static_cast<int64_t>(padded) * 2 * kRows; ++idx) sums[idx] = 0.0f;
  for (int64_t key = tile.key_begin; key < tile.key_end; key += kKeyTile) {
    const int64_t left = tile.key_end - key;
    scores.num_keys = left < kKeyTile ? left : kKeyTile;
    const FloatRows v = load_keys(in.v, key, scores.num_keys, head_dim, padded, key_rows);
    set_product<kRows>(g, v.data, v.stride, d_out_panel, scores.num_keys, head_dim);
    const FloatRows k = load_keys(in.k, key, scores.num_keys, head_dim, padded, key_rows);
    set_product<2 * kRows>(scores.scores, k.data, k.stride, panel, scores.num_keys, head_dim);
    scores.masked = limits.cut(key, scores.num_keys);
    if (scores.masked) limits.relative(key, scores.begin, scores.end);
    query_score_gradients<kRows>(scores, g, constants, in.softmax_scale);
    scores.add_product(sums, k, head_dim, spare);
  }
  transpose(key_rows, padded, sums, 2 * kRows, padded, 2 * kRows);
  store_rows(gradients.dq, key_rows, tile, in.group, head_dim, padded);
  store_rows(gradients.dr, key_rows + kRows * padded, tile, in.group, head_dim, padded);
}

/// Scores of one tile of the key pass, [rows][kKeyTile] each: s -> scale ds, t -> dt, g -> w.
struct KeyScores {
  float *s, *t, *g;
};

/// Hidden keys get zeros, as in query_score_gradients.
static void key_score_gradients(const KeyScores& row, const RowStats& stats, LaneRange visible,
                                float softmax_scale) {
  constexpr int kWidth = kVectorFloats;
  using F = Floats<kWidth>;
  using I = Ints<kWidth>;
  for (int lane = 0; lane < kKeyTile; lane += kWidth) {
    const F p = exponential<kWidth>(load<F>(row.s + lane) * softmax_scale - stats.lse);
    const F p_deviation = p * (load<F>(row.g + lane) - stats.g_mean);
    const F a = stats.t_mean - load<F>(row.t + lane) + 1.0f;
    F ds = (a * p_deviation + p * stats.g_mean_less) * softmax_scale;
    F dt = -p_deviation;
    F w = p * a;
    if (visible.cut()) {
      const I key = iota<kWidth>() + lane;
      const I in_range = (key >= visible.begin) & (key < visible.end);
      ds = in_range ? ds : F{};
      dt = in_range ? dt : F{};
      w = in_range ? w : F{};
    }
    store(row.s + lane, ds);
    store(row.t + lane, dt);
    store(row.g + lane, w);
  }
}

/// panel[Dp][kKeyTile] = the transposed keys, zero lanes beyond the last.
static void load_key_panel(const KeyTensor& tensor, const KeyTile& tile, int head_dim, float* rows,
                           float* panel) {
  const int padded = padded_dim(head_dim);
  for (int64_t idx = 0; idx < tile.num_keys; ++idx)
    load_row(rows + idx * padded, key_address(tensor, tile.first_key + idx), tensor.dtype, head_dim,
             padded);
  for (int64_t idx = tile.num_keys * padded; idx < static_cast<int64_t>(kKeyTile) * padded; ++idx)
    rows[idx] = 0.0f;
  transpose(panel, kKeyTile, rows, padded, kKeyTile, padded);
}

static void store_key_panel(const RowTensor<void>& tensor, const KeyTile& tile, int head_dim,
                            const float* panel, float* rows) {
  const int padded = padded_dim(head_dim);
  transpose(rows, padded, panel, kKeyTile, padded, kKeyTile);
  const QueryTile keys{
      .first_row = tile.first_key, .num_rows = tile.num_keys, .key_begin = 0, .key_end = 0};
  store_rows(tensor, rows, keys, 1, head_dim, padded);
}

static void backward_key_tile(const BackwardInputs& inputs, const KeyTile& tile, float* scratch) {
  constexpr int kRows = 64;  // rows per step
  const TileInputs& in = inputs.tile;
  const int head_dim = in.head_dim;
  const int padded = padded_dim(head_dim);
  const int64_t panel_floats = static_cast<int64_t>(kKeyTile) * padded;
  ScratchCursor cursor{scratch};
  float* const q = cursor.take(kRows * padded);
  float* const r = cursor.take(kRows * padded);
  float* const d_out = cursor.take(kRows * padded);
  float* const k_panel = cursor.take(panel_floats);
  float* const v_panel = cursor.take(panel_floats);
  float* const dk = cursor.take(panel_floats);
  float* const dv = cursor.take(panel_floats);
  float* const spare = cursor.take(kRows * padded);
  LaneRange visible[kRows];
  const KeyScores scores{.s = cursor.take(kRows * kKeyTile),
                         .t = cursor.take(kRows * kKeyTile),
                         .g = cursor.take(kRows * kKeyTile)};
  load_key_panel(in.k, tile, head_dim, q, k_panel);
  load_key_panel(in.v, tile, head_dim, q, v_panel);
  for (int64_t idx = 0; idx < panel_floats; ++idx) dk[idx] = dv[idx] = 0.0f;

  for (int64_t first = tile.row_begin; first < tile.row_end; first += kRows) {
    const int64_t left = tile.row_end - first;
    const QueryTile rows{
        .first_row = first, .num_rows = left < kRows ? left : kRows, .key_begin = 0, .key_end = 0};
    load_rows(q, in.q, rows, in.group, head_dim, padded, 0);
    load_rows(r, in.r, rows, in.group, head_dim, padded, 0);
    load_rows(d_out, inputs.d_out, rows, in.group, head_dim, padded, 0);
    set_product<kKeyTile>(scores.s, q, padded, k_panel, rows.num_rows, head_dim);
    set_product<kKeyTile>(scores.t, r, padded, k_panel, rows.num_rows, head_dim);
    set_product<kKeyTile>(scores.g, d_out, padded, v_panel, rows.num_rows, head_dim);
    bool cut = false;
    for (int64_t row = 0; row < rows.num_rows; ++row) {
      visible[row] = visible_lanes(in, tile, first + row);
      cut |= visible[row].cut();
      const int64_t offset = row * kKeyTile;
      key_score_gradients({.s = scores.s + offset, .t = scores.t + offset, .g = scores.g + offset},
                          tile.stats[first + row], visible[row], in.softmax_scale);
    }
    const auto add_product = [&](float* sums, const float* row_panel, const float* weights) {
      if (!cut) {
        add_transposed_product<kKeyTile>(sums, row_panel, padded, weights, head_dim, rows.num_rows);
        return;
      }
      add_visible_product<kKeyTile>(sums, {row_panel, padded}, weights, {head_dim, rows.num_rows},
                                    spare,
                                    [&](int64_t row, int key) { return visible[row].holds(key); });
    };
    add_product(dk, q, scores.s);
    add_product(dk, r, scores.t);
    add_product(dv, d_out, scores.g);
  }
  store_key_panel(tile.dk, tile, head_dim, dk, q);
  store_key_panel(tile.dv, tile, head_dim, dv, q);
}

}  // namespace
}  // namespace parallax::cpu
