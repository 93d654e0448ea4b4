// From the scores of a tile to their gradients, with rows in the lanes:
//   p = exp(s scale - lse)     w = p (1 + t_mean - t)     g = d_out . v
//   ds = w (g - g_mean) + p (g_mean - d_out . out)     dt = -p (g - g_mean)
// docs/math.md, backward.
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

/// [S | T] -> [scale ds | dt] in place, rows in the lanes; g is [num_keys][kRows], and becomes w if
/// kWeights. Hidden keys get zeros at the end, whatever their scores and the row's constants are.
template <int kRows, bool kWeights = false>
static void query_score_gradients(const ScoreTile<kRows>& tile, float* g,
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
      F w = p * a;
      if (tile.masked) {
        const I visible = (begin <= key) & (end > key);
        ds = visible ? ds : F{};
        dt = visible ? dt : F{};
        w = visible ? w : F{};
      }
      if constexpr (kWeights) store(g + key * kRows + lane, w);
      store(row, ds);
      store(row + kRows, dt);
    }
  }
}

}  // namespace
}  // namespace parallax::cpu
