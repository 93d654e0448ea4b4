// Backward on the matrix unit, for bfloat16, in two passes over disjoint outputs, on packed
// operands and with the score gradients of score_gradients.h, which are rounded to bfloat16 for the
// second products. This is the first pass: dq and dr of a tile of rows, in groups of 16 as
// forward's.   [dQ | dR] += K' [scale ds | dt]   docs/math.md, backward.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/matrix_forward.h"
#include "cpu/tile/score_gradients.h"

namespace parallax::cpu {
namespace {

/// dots[row] = d_out . other of each row, added in the order of the score products: where `other`
/// equals v, it equals d_out . v bit for bit (see panel_dots).
static void matrix_row_dots(const RowTensor<const void>& other, const QueryTile& tile,
                            const TileInputs& inputs, const uint16_t* d_out_columns, float* dots) {
  alignas(64) uint16_t rows[kGroupRows][kTileDepth];
  alignas(64) float products[kGroupRows][kGroupRows] = {};
  for (int depth = 0; depth < inputs.head_dim; depth += kTileDepth) {
    load_depth(other, tile, inputs.group, {.first = depth, .head_dim = inputs.head_dim}, rows);
    tile_add_product(products[0], rows[0], d_out_columns + depth * kGroupRows);
  }
  for (int row = 0; row < kGroupRows; ++row) dots[row] = products[row][row];
}

/// [keys][32] fp32 pairs of halves -> for each half a tile per block of 32 keys; keys beyond the
/// last count as zeros.
static void round_halves(float* halves, const KeyStep& step, uint16_t* left, uint16_t* right) {
  const int64_t end = step.num_blocks * kPackedRows;
  for (int64_t idx = step.num_keys * 2 * kGroupRows; idx < end * 2 * kGroupRows; ++idx)
    halves[idx] = 0.0f;
  for (int64_t block = 0; block < step.num_blocks; ++block) {
    const float* const source = halves + block * kPackedRows * 2 * kGroupRows;
    round_to_pairs(left + block * kTileElements, source, 2 * kGroupRows);
    round_to_pairs(right + block * kTileElements, source + kGroupRows, 2 * kGroupRows);
  }
}

/// One group of 16 rows in the query pass.
struct QueryGroup {
  QueryTile tile;
  const uint16_t *q, *r, *d_out;  // columns
  float* sums;                    // [Dp][32], of dq beside dr
  RowConstants<kGroupRows> constants;
  RowLimits<kGroupRows> limits;
};

static void start_query_group(const BackwardInputs& inputs, const QueryTile& tile,
                              uint16_t* columns, QueryGroup& group) {
  const TileInputs& in = inputs.tile;
  const int padded = matrix_dim(in.head_dim);
  const int64_t elements = static_cast<int64_t>(kGroupRows) * padded;
  group.tile = tile;
  load_row_columns(in.q, tile, in.group, in.head_dim, columns);
  load_row_columns(in.r, tile, in.group, in.head_dim, columns + elements);
  load_row_columns(inputs.d_out, tile, in.group, in.head_dim, columns + 2 * elements);
  group.q = columns;
  group.r = columns + elements;
  group.d_out = columns + 2 * elements;
  group.limits = row_limits<kGroupRows>(in.band, tile, in.group);
  float dots_softmax[kGroupRows], dots[kGroupRows];
  matrix_row_dots(inputs.out_softmax, tile, in, group.d_out, dots_softmax);
  matrix_row_dots(inputs.out, tile, in, group.d_out, dots);
  set_row_constants<kGroupRows>(inputs, tile, dots_softmax, dots, group.constants);
  for (int64_t idx = 0; idx < 2 * elements; ++idx) group.sums[idx] = 0.0f;
}

/// Adds one step of keys to [dQ | dR]. g is work space of [kMatrixKeys][16].
static void query_group_step(const TileInputs& in, const QueryGroup& group, int64_t first_key,
                             const MatrixScratch& work, float* g) {
  const int padded = matrix_dim(in.head_dim);
  const KeyStep step = key_step(group.tile, first_key);
  if (step.num_keys == 0) return;
  ScoreTile<kGroupRows> scores{.scores = work.scores,
                               .num_keys = step.num_keys,
                               .softmax_scale = in.softmax_scale,
                               .masked = group.limits.cut(first_key, step.num_keys),
                               .begin = {},
                               .end = {}};
  if (scores.masked) group.limits.relative(first_key, scores.begin, scores.end);
  matrix_scores(in.packed_k.tiles, step, group.q, group.r, padded, work.scores);
  for (int64_t block = 0; block < step.num_blocks; ++block)
    tile_column_product({g + block * kPackedRows * kGroupRows, nullptr, kGroupRows},
                        block_tiles(in.packed_v.tiles, step.first_block + block, padded),
                        {group.d_out, nullptr, kTileElements}, padded / kTileDepth);
  query_score_gradients<kGroupRows>(scores, g, group.constants, in.softmax_scale);
  round_halves(work.scores, step, work.left, work.right);
  matrix_add_visible(in.packed_k, step, scores, work, padded, group.sums);
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

static void matrix_backward_query_tile(const BackwardInputs& inputs, const QueryTile& tile,
                                       const QueryGradients& gradients, float* scratch) {
  const TileInputs& in = inputs.tile;
  const int stored = padded_dim(in.head_dim);
  const int padded = matrix_dim(in.head_dim);
  const TileSession session;
  ScratchCursor cursor{scratch};
  const MatrixScratch work = take_matrix_scratch(cursor, padded);
  float* const g = cursor.take(kMatrixKeys * kGroupRows);
  float* const rows = cursor.take(2 * kGroupRows * padded);
  const int num_groups = static_cast<int>((tile.num_rows + kGroupRows - 1) / kGroupRows);
  QueryGroup groups[kMatrixGroups];
  for (int idx = 0; idx < num_groups; ++idx) {
    auto* const columns = cursor.take_halves(4 * kGroupRows * padded);
    groups[idx].sums = cursor.take(2 * kGroupRows * padded);
    start_query_group(inputs, tile_part<kGroupRows>(in, tile, idx), columns, groups[idx]);
    store_row_stats<kGroupRows>(groups[idx].constants, groups[idx].tile, gradients.stats);
  }
  for (int64_t key = first_step(tile); key < tile.key_end; key += kMatrixKeys)
    for (int idx = 0; idx < num_groups; ++idx) query_group_step(in, groups[idx], key, work, g);
  for (int idx = 0; idx < num_groups; ++idx) {
    transpose(rows, stored, groups[idx].sums, 2 * kGroupRows, stored, 2 * kGroupRows);
    store_rows(gradients.dq, rows, groups[idx].tile, in.group, in.head_dim, stored);
    store_rows(gradients.dr, rows + kGroupRows * stored, groups[idx].tile, in.group, in.head_dim,
               stored);
  }
}

}  // namespace
}  // namespace parallax::cpu
