// Forward on the matrix unit, for bfloat16. A wide tile is four groups of 16 rows; a group is a
// tile of the vector kernels in every respect but its products: 16 lanes of q beside 16 of r, its
// own running state, the same softmax step. K arrives packed by rows, V transposed:
//   [S | T] = K [Q | R]      [O1 | O2] += V' [P | P (t - centre)]
// P and P (t - centre) are rounded to bfloat16 for the second product, after centring, so that a
// large mean of t costs nothing.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/matrix_softmax.h"

namespace parallax::cpu {
namespace {

struct DepthRange {
  int first, head_dim;
};

/// 32 numbers of each row of a group from depth.first on; zeros beyond the head size and the last
/// row.
static void load_depth(const RowTensor<const void>& tensor, const QueryTile& tile, int64_t group,
                       DepthRange depth, uint16_t (*rows)[kTileDepth]) {
  const int left = depth.head_dim - depth.first;
  const size_t bytes = static_cast<size_t>(left < kTileDepth ? left : kTileDepth) * 2;
  std::memset(rows, 0, kTileElements * sizeof(uint16_t));
  for (int64_t row = 0; row < tile.num_rows; ++row) {
    const void* const source = row_address(tensor, tile.first_row + row, group);
    std::memcpy(rows[row], static_cast<const uint16_t*>(source) + depth.first, bytes);
  }
}

/// Rows of a group as the right-hand factor: [Dp / 32] tiles, a column per row.
static void load_row_columns(const RowTensor<const void>& tensor, const QueryTile& tile,
                             int64_t group, int head_dim, uint16_t* columns) {
  alignas(64) uint16_t rows[kGroupRows][kTileDepth];
  for (int depth = 0; depth < head_dim; depth += kTileDepth) {
    load_depth(tensor, tile, group, {.first = depth, .head_dim = head_dim}, rows);
    transpose_tile(columns + depth * kGroupRows, rows[0]);
  }
}

/// The tiles of a packed block, upper half beside lower, one step per 32 of D.
PLX_INLINE TilePairs block_tiles(const uint16_t* tiles, int64_t block, int padded) {
  const uint16_t* const first = tiles + block * kPackedRows * padded;
  return {.first = first, .second = first + kTileRows * padded, .step = kTileElements};
}

/// Rows d .. d + 32 of the transposed packed blocks from `block` on, one step per block.
PLX_INLINE TilePairs transposed_tiles(const uint16_t* transposed, int64_t block, int d,
                                      int padded) {
  const uint16_t* const first = transposed + block * kPackedRows * padded + d * kPackedRows;
  return {.first = first,
          .second = first + kTileElements,
          .step = static_cast<int64_t>(kPackedRows) * padded};
}

/// A step of keys: whole packed blocks, of which the softmax takes the first num_keys keys; none if
/// the tile sees no key of the step.
struct KeyStep {
  int64_t first_block, num_blocks;
  int64_t num_keys;
};

PLX_INLINE KeyStep key_step(const QueryTile& tile, int64_t first_key) {
  int64_t num_keys = tile.key_end - first_key;
  if (num_keys > kMatrixKeys) num_keys = kMatrixKeys;
  if (num_keys < 0 || first_key + num_keys <= tile.key_begin) num_keys = 0;
  return {.first_block = first_key / kPackedRows,
          .num_blocks = (num_keys + kPackedRows - 1) / kPackedRows,
          .num_keys = num_keys};
}

/// The first step of a tile starts at a whole block; keys before its first are masked.
PLX_INLINE int64_t first_step(const QueryTile& tile) {
  return tile.key_begin / kPackedRows * kPackedRows;
}

/// [S | T] of a step: scores[key][0 .. 16) = k.q, [16 .. 32) = k.r.
PLX_INLINE void matrix_scores(const uint16_t* k_tiles, const KeyStep& step, const uint16_t* q,
                              const uint16_t* r, int padded, float* scores) {
  for (int64_t block = 0; block < step.num_blocks; ++block) {
    float* const rows = scores + block * kPackedRows * 2 * kGroupRows;
    tile_block_product<Sums::kSet>({rows, rows + kGroupRows, 2 * kGroupRows},
                                   block_tiles(k_tiles, step.first_block + block, padded),
                                   {q, r, kTileElements}, padded / kTileDepth);
  }
}

/// sums[d][32] += X' [left | right] over the blocks of a step.
PLX_INLINE void matrix_add(const uint16_t* transposed, const KeyStep& step,
                           const MatrixScratch& scratch, int padded, float* sums) {
  for (int d = 0; d < padded; d += kPackedRows) {
    float* const rows = sums + d * 2 * kGroupRows;
    tile_block_product<Sums::kAdd>({rows, rows + kGroupRows, 2 * kGroupRows},
                                   transposed_tiles(transposed, step.first_block, d, padded),
                                   {scratch.left, scratch.right, kTileElements}, step.num_blocks);
  }
}

PLX_INLINE bool all_rows_finite(const PackedRows& rows, int64_t first_block, int64_t num_blocks) {
  uint32_t bad = 0;
  for (int64_t block = 0; block < num_blocks; ++block) bad |= rows.not_finite[first_block + block];
  return bad == 0;
}

/// Work space for one packed block.
struct SpareBlock {
  uint16_t* numbers;
  int padded;
};

/// The rows of one packed block times one tile of factors each for the left and the right columns,
/// with nothing added for hidden pairs, whose factors are 0, even where a row is not finite: such
/// rows stay out of the product and are added column by column to those that see them.
/// `visible(row, column)`, rows of the block, columns 0 .. 32. `sums` begins at d = 0.
template <typename Visible>
static void add_visible_block(const PackedRows& rows, int64_t block, const TilePairs& factors,
                              const SumBlock& sums, const SpareBlock& spare,
                              const Visible& visible) {
  const int padded = spare.padded;
  const uint16_t* const packed = rows.transposed + block * kPackedRows * padded;
  const uint32_t bad = rows.not_finite[block];
  for (int idx = 0; bad != 0 && idx < kPackedRows * padded; ++idx)
    spare.numbers[idx] = (bad >> idx % kPackedRows & 1) != 0 ? uint16_t{0} : packed[idx];
  for (int d = 0; d < padded; d += kPackedRows)
    tile_block_product<Sums::kAdd>(
        {sums.left + d * sums.stride, sums.right + d * sums.stride, sums.stride},
        transposed_tiles(bad != 0 ? spare.numbers : packed, 0, d, padded), factors, 1);
  for (int row = 0; row < kPackedRows; ++row) {
    if ((bad >> row & 1) == 0) continue;
    for (int column = 0; column < 2 * kGroupRows; ++column) {
      if (!visible(row, column)) continue;
      const bool is_left = column < kGroupRows;
      const int place = column % kGroupRows;
      const uint16_t* const tile = is_left ? factors.first : factors.second;
      float* const target = (is_left ? sums.left : sums.right) + place;
      const float factor = from_bfloat16(tile[row / 2 * 2 * kGroupRows + 2 * place + row % 2]);
      for (int d = 0; d < padded; ++d)
        target[d * sums.stride] += factor * from_bfloat16(packed[d * kPackedRows + row]);
    }
  }
}

/// matrix_add() of a step in which some row of the group may not see some key.
static void matrix_add_visible(const PackedRows& keys, const KeyStep& step,
                               const ScoreTile<kGroupRows>& tile, const MatrixScratch& scratch,
                               int padded, float* sums) {
  const bool whole = !tile.masked && step.num_keys % kPackedRows == 0;
  if (whole || all_rows_finite(keys, step.first_block, step.num_blocks)) {
    matrix_add(keys.transposed, step, scratch, padded, sums);
    return;
  }
  for (int64_t block = 0; block < step.num_blocks; ++block) {
    const int64_t offset = block * kTileElements;
    add_visible_block(keys, step.first_block + block,
                      {scratch.left + offset, scratch.right + offset, 0},
                      {sums, sums + kGroupRows, 2 * kGroupRows}, {scratch.spare, padded},
                      [&](int row, int column) {
                        const int64_t key = block * kPackedRows + row;
                        const int lane = column % kGroupRows;
                        return key < step.num_keys &&
                               (!tile.masked || (tile.begin[lane] <= key && key < tile.end[lane]));
                      });
  }
}

static void matrix_forward_tile(const TileInputs& inputs, const QueryTile& tile,
                                const TileState& state, float* scratch) {
  const int head_dim = inputs.head_dim;
  const int padded = matrix_dim(head_dim);
  const TileSession session;
  ScratchCursor cursor{scratch};
  auto* const columns = cursor.take_halves(2 * kMatrixGroups * kGroupRows * padded);
  const MatrixScratch work = take_matrix_scratch(cursor, padded);
  float* const rescale = cursor.take(kGroupRows);
  const int64_t column_elements = static_cast<int64_t>(kGroupRows) * padded;
  QueryTile tiles[kMatrixGroups];
  RowLimits<kGroupRows> limits[kMatrixGroups];
  const int num_groups = static_cast<int>((tile.num_rows + kGroupRows - 1) / kGroupRows);
  start_state(state, kMatrixRows, padded);
  for (int group = 0; group < num_groups; ++group) {
    tiles[group] = tile_part<kGroupRows>(inputs, tile, group);
    uint16_t* const q = columns + 2 * group * column_elements;
    load_row_columns(inputs.q, tiles[group], inputs.group, head_dim, q);
    load_row_columns(inputs.r, tiles[group], inputs.group, head_dim, q + column_elements);
    limits[group] = row_limits<kGroupRows>(inputs.band, tiles[group], inputs.group);
  }

  ScoreTile<kGroupRows> scores{.scores = work.scores,
                               .num_keys = 0,
                               .softmax_scale = inputs.softmax_scale,
                               .masked = false,
                               .begin = {},
                               .end = {}};
  for (int64_t key = first_step(tile); key < tile.key_end; key += kMatrixKeys) {
    for (int group = 0; group < num_groups; ++group) {
      const KeyStep step = key_step(tiles[group], key);
      if (step.num_keys == 0) continue;
      scores.num_keys = step.num_keys;
      const TileState part = state_part<kGroupRows>(state, group, padded);
      const uint16_t* const q = columns + 2 * group * column_elements;
      matrix_scores(inputs.packed_k.tiles, step, q, q + column_elements, padded, work.scores);
      scores.masked = limits[group].cut(key, step.num_keys);
      if (scores.masked) limits[group].relative(key, scores.begin, scores.end);
      if (matrix_softmax_step(scores, part, work, rescale))
        rescale_sums<kGroupRows>(part.sums, rescale, head_dim);
      matrix_add_visible(inputs.packed_v, step, scores, work, padded, part.sums);
    }
  }
}

static void matrix_finish_tile(const TileInputs& inputs, const QueryTile& tile,
                               const TileState& state, const ForwardOutputs& outputs,
                               float* scratch) {
  for (int group = 0; group * kGroupRows < tile.num_rows; ++group)
    finish_tile<kGroupRows, true>(inputs, tile_part<kGroupRows>(inputs, tile, group),
                                  state_part<kGroupRows>(state, group, matrix_dim(inputs.head_dim)),
                                  outputs, scratch);
}

static void matrix_merge_tile(const TileState& state, const TileState& other, int head_dim) {
  const int padded = matrix_dim(head_dim);
  for (int group = 0; group < kMatrixGroups; ++group)
    merge_tile<kGroupRows, true>(state_part<kGroupRows>(state, group, padded),
                                 state_part<kGroupRows>(other, group, padded), head_dim);
}

}  // namespace
}  // namespace parallax::cpu
