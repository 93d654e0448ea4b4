// The second pass of backward on the matrix unit: dk and dv of a tile of keys, over the rows that
// see them, keys in the lanes. The sum over the heads of the group happens inside the tile.
//   dK += Q' (scale ds) + R' dt     dV += dO' w
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/matrix_query_pass.h"

namespace parallax::cpu {
namespace {

/// A row's visible keys relative to a tile of the key pass.
struct LaneRange {
  int32_t begin, end;
  bool cut() const { return begin > 0 || end < kKeyTile; }
  bool holds(int lane) const { return begin <= lane && lane < end; }
};

PLX_INLINE LaneRange visible_lanes(const TileInputs& inputs, const KeyTile& tile, int64_t row) {
  const int64_t token = row / inputs.group;
  return {.begin = place_in_tile(band_begin(inputs.band, token), tile.first_key),
          .end = place_in_tile(band_end(inputs.band, token), tile.first_key)};
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

static void store_key_panel(const RowTensor<void>& tensor, const KeyTile& tile, int head_dim,
                            const float* panel, float* rows) {
  const int padded = padded_dim(head_dim);
  transpose(rows, padded, panel, kKeyTile, padded, kKeyTile);
  const QueryTile keys{
      .first_row = tile.first_key, .num_rows = tile.num_keys, .key_begin = 0, .key_end = 0};
  store_rows(tensor, rows, keys, 1, head_dim, padded);
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
