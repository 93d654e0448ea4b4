// Backward on the matrix unit, for bfloat16: the two passes of backward_tile.h with its score
// gradients, on packed operands. The gradients of the scores and the weights are rounded to
// bfloat16 for the second products.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/backward_tile.h"
#include "cpu/tile/matrix_forward.h"

namespace parallax::cpu {
namespace {

/// dots[row] = d_out . other of each row, added in the order of the score products: where `other`
/// equals v, it equals d_out . v bit for bit (see panel_dots).
static void matrix_row_dots(const RowTensor<const void>& other, const QueryTile& tile,
                            const TileInputs& inputs, const uint16_t* d_out_columns, float* dots) {
  alignas(64) uint16_t rows[kGroupRows][kTileDepth];
  alignas(64) float products[kGroupRows][kGroupRows];
  tile_zero<0>();
  for (int depth = 0; depth < inputs.head_dim; depth += kTileDepth) {
    load_depth(other, tile, inputs.group, {.first = depth, .head_dim = inputs.head_dim}, rows);
    tile_load<4>(rows, 64);
    tile_load<6>(d_out_columns + depth * kGroupRows, 64);
    tile_product<0, 4, 6>();
  }
  tile_store<0>(products, 64);
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
    start_query_group(inputs, group_tile(in, tile, idx), columns, groups[idx]);
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

/// Rows per step of the key pass, in packed blocks.
constexpr int kStepBlocks = 4;
constexpr int kStepRows = kStepBlocks * kPackedRows;
constexpr int kKeyColumns = kKeyTile / kGroupRows;  // groups of 16 keys

/// The key pass of one tile: its keys as columns, its sums, and the work space of a step.
struct KeyPass {
  uint16_t *k, *v;        // [kKeyColumns] columns
  float *dk, *dv;         // [Dp][kKeyTile]
  KeyScores scores;       // [kStepRows][kKeyTile]
  uint16_t *ds, *dt, *w;  // [kKeyColumns][kStepBlocks] tiles
  uint16_t* spare;        // one packed block
};

static KeyPass take_key_pass(ScratchCursor& cursor, int padded) {
  const int64_t panel = static_cast<int64_t>(kKeyTile) * padded;
  KeyPass pass;
  pass.k = cursor.take_halves(panel);
  pass.v = cursor.take_halves(panel);
  pass.dk = cursor.take(panel);
  pass.dv = cursor.take(panel);
  for (float** part : {&pass.scores.s, &pass.scores.t, &pass.scores.g})
    *part = cursor.take(kStepRows * kKeyTile);
  for (uint16_t** part : {&pass.ds, &pass.dt, &pass.w})
    *part = cursor.take_halves(kStepRows * kKeyTile);
  pass.spare = cursor.take_halves(static_cast<int64_t>(kPackedRows) * padded);
  return pass;
}

/// The packed keys from first_key (a multiple of kKeyTile) on as columns; zeros beyond num_keys'
/// last block.
static void load_key_columns(const uint16_t* tiles, const KeyTile& tile, int padded,
                             uint16_t* columns) {
  for (int column = 0; column < kKeyColumns; ++column) {
    uint16_t* const target = columns + column * kGroupRows * padded;
    if (column * kGroupRows >= tile.num_keys) {
      std::memset(target, 0, static_cast<size_t>(kGroupRows * padded) * sizeof(uint16_t));
      continue;
    }
    const uint16_t* const source = tiles + (tile.first_key + column * kGroupRows) * padded;
    for (int depth = 0; depth < padded; depth += kTileDepth)
      transpose_tile(target + depth * kGroupRows, source + depth * kGroupRows);
  }
}

/// rows[kStepRows][kKeyTile] = packed rows . keys, for `num_blocks` blocks.
static void key_scores(const uint16_t* tiles, int64_t first_block, int64_t num_blocks,
                       const uint16_t* columns, int padded, float* rows) {
  const int64_t column_elements = static_cast<int64_t>(kGroupRows) * padded;
  for (int64_t block = 0; block < num_blocks; ++block)
    for (int column = 0; column < kKeyColumns; column += 2) {
      float* const target = rows + block * kPackedRows * kKeyTile + column * kGroupRows;
      const uint16_t* const keys = columns + column * column_elements;
      tile_block_product<Sums::kSet>(
          {target, target + kGroupRows, kKeyTile}, block_tiles(tiles, first_block + block, padded),
          {keys, keys + column_elements, kTileElements}, padded / kTileDepth);
    }
}

/// A step of the key pass: whole packed blocks of rows. `cut`: some row does not see some key.
struct RowStep {
  int64_t first_block, num_blocks;
  bool cut;
};

/// What the gradients of one key tile are added from.
struct KeyGradient {
  const TileInputs& in;
  const KeyTile& tile;
  uint16_t* spare;
};

/// sums[d][kKeyTile] += X' factors, the transposed rows times [rows][keys] tiles. Hidden pairs add
/// nothing, whatever the rows hold.
static void add_key_gradient(const KeyGradient& gradient, const PackedRows& rows,
                             const RowStep& step, const uint16_t* factors, float* sums) {
  const auto& [in, tile, spare] = gradient;
  const int padded = matrix_dim(in.head_dim);
  const bool plain = !step.cut || all_rows_finite(rows, step.first_block, step.num_blocks);
  for (int column = 0; column < kKeyColumns; column += 2) {
    const uint16_t* const left = factors + column * kStepBlocks * kTileElements;
    const uint16_t* const right = left + kStepBlocks * kTileElements;
    float* const target = sums + column * kGroupRows;
    for (int d = 0; plain && d < padded; d += kPackedRows)
      tile_block_product<Sums::kAdd>(
          {target + d * kKeyTile, target + d * kKeyTile + kGroupRows, kKeyTile},
          transposed_tiles(rows.transposed, step.first_block, d, padded),
          {left, right, kTileElements}, step.num_blocks);
    for (int64_t block = 0; !plain && block < step.num_blocks; ++block) {
      const int64_t offset = block * kTileElements;
      const int64_t first_row = (step.first_block + block) * kPackedRows;
      const auto visible = [&, &inputs = in, &keys = tile](int row, int key) {
        return first_row + row >= keys.row_begin && first_row + row < keys.row_end &&
               visible_lanes(inputs, keys, first_row + row).holds(column * kGroupRows + key);
      };
      add_visible_block(rows, step.first_block + block, {left + offset, right + offset, 0},
                        {target, target + kGroupRows, kKeyTile}, {spare, padded}, visible);
    }
  }
}

/// Scores -> their gradients, in place; zeros for rows outside the tile's. Returns whether some row
/// does not see some key.
static bool key_step_gradients(const TileInputs& in, const KeyTile& tile, int64_t first_row,
                               int64_t num_rows, const KeyScores& scores) {
  bool cut = false;
  for (int64_t idx = 0; idx < num_rows; ++idx) {
    const int64_t row = first_row + idx;
    const KeyScores part{.s = scores.s + idx * kKeyTile,
                         .t = scores.t + idx * kKeyTile,
                         .g = scores.g + idx * kKeyTile};
    if (row < tile.row_begin || row >= tile.row_end) {
      for (int lane = 0; lane < kKeyTile; ++lane) part.s[lane] = part.t[lane] = part.g[lane] = 0;
      cut = true;
      continue;
    }
    const LaneRange visible = visible_lanes(in, tile, row);
    cut |= visible.cut();
    key_score_gradients(part, tile.stats[row], visible, in.softmax_scale);
  }
  return cut;
}

static void round_scores(const float* scores, int64_t num_blocks, uint16_t* tiles) {
  for (int column = 0; column < kKeyColumns; ++column)
    for (int64_t block = 0; block < num_blocks; ++block)
      round_to_pairs(tiles + (column * kStepBlocks + block) * kTileElements,
                     scores + block * kPackedRows * kKeyTile + column * kGroupRows, kKeyTile);
}

static void matrix_backward_key_tile(const BackwardInputs& inputs, const KeyTile& tile,
                                     float* scratch) {
  const TileInputs& in = inputs.tile;
  const int padded = matrix_dim(in.head_dim);
  const TileSession session;
  ScratchCursor cursor{scratch};
  float* const rows = cursor.take(static_cast<int64_t>(kKeyTile) * padded);
  const KeyPass pass = take_key_pass(cursor, padded);
  const KeyGradient gradient{.in = in, .tile = tile, .spare = pass.spare};
  load_key_columns(in.packed_k.tiles, tile, padded, pass.k);
  load_key_columns(in.packed_v.tiles, tile, padded, pass.v);
  for (int64_t idx = 0; idx < static_cast<int64_t>(kKeyTile) * padded; ++idx)
    pass.dk[idx] = pass.dv[idx] = 0.0f;

  for (int64_t first = tile.row_begin / kPackedRows * kPackedRows; first < tile.row_end;
       first += kStepRows) {
    const int64_t left = tile.row_end - first;
    const int64_t num_blocks =
        ((left < kStepRows ? left : kStepRows) + kPackedRows - 1) / kPackedRows;
    const int64_t block = first / kPackedRows;
    key_scores(inputs.packed_q.tiles, block, num_blocks, pass.k, padded, pass.scores.s);
    key_scores(inputs.packed_r.tiles, block, num_blocks, pass.k, padded, pass.scores.t);
    key_scores(inputs.packed_d_out.tiles, block, num_blocks, pass.v, padded, pass.scores.g);
    const RowStep step{
        .first_block = block,
        .num_blocks = num_blocks,
        .cut = key_step_gradients(in, tile, first, num_blocks * kPackedRows, pass.scores)};
    round_scores(pass.scores.s, num_blocks, pass.ds);
    round_scores(pass.scores.t, num_blocks, pass.dt);
    round_scores(pass.scores.g, num_blocks, pass.w);
    add_key_gradient(gradient, inputs.packed_q, step, pass.ds, pass.dk);
    add_key_gradient(gradient, inputs.packed_r, step, pass.dt, pass.dk);
    add_key_gradient(gradient, inputs.packed_d_out, step, pass.w, pass.dv);
  }
  store_key_panel(tile.dk, tile, in.head_dim, pass.dk, rows);
  store_key_panel(tile.dv, tile, in.head_dim, pass.dv, rows);
}

}  // namespace
}  // namespace parallax::cpu
