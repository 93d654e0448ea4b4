// Backward in one pass: 8 products per pair of tiles where two passes take 11. A task is 128 rows
// against all keys they see, with the score gradients of score_gradients.h:
//   [dQ | dR] += K' [scale ds | dt]     rows in the lanes, kept over the keys
//   dK  = [scale ds | dt] [Q; R]        the head dimension in the lanes, per tile of keys
//   dV  = w dO
// The task adds its dK and dV to fp32 sums when the tasks before it have added theirs (KeyTurns),
// so that the order of the additions does not depend on the threads.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/forward_tile.h"
#include "cpu/tile/key_prefetch.h"
#include "cpu/tile/score_gradients.h"

namespace parallax::cpu {
namespace {

/// Parts of kWideRows rows in a task. The more rows, the fewer times k, v, dk and dv are read;
/// their panels, 688 KB at D = 128, stay in the second-level cache.
constexpr int kFusedParts = 4;
constexpr int kFusedRows = kFusedParts * kWideRows;
/// Scratch of a task, floats per number of Dp: the rows of FusedPart, and five of [kKeyTile].
constexpr int kFusedScratch = kFusedParts * 8 * kWideRows + 5 * kKeyTile;

/// kWideRows rows of a task, what they are multiplied by and what they sum.
struct FusedPart {
  QueryTile tile;
  float* rows;         // [2 kWideRows][Dp], q before r
  float* d_out;        // [kWideRows][Dp]
  float* panel;        // [Dp][2 kWideRows], of q beside r
  float* d_out_panel;  // [Dp][kWideRows]
  float* sums;         // [Dp][2 kWideRows], of dq beside dr
  bool finite;         // all of rows and d_out
  RowConstants<kWideRows> constants;
  RowLimits<kWideRows> limits;

  bool sees(int64_t first_key) const {
    return first_key < tile.key_end && first_key + kKeyTile > tile.key_begin;
  }
};

/// One tile of keys, and what the parts of the task add up for it.
struct FusedKeys {
  int64_t first_key;
  int64_t num_keys;   // that the task's rows see
  int64_t num_added;  // that the sequence has: the others' parts are zero
  FloatRows k, v;
  Rows<float> dk, dv;  // [kKeyTile][Dp]
};

struct FusedWork {
  KeyPrefetch next;
  float* g;      // [kKeyTile][kWideRows]
  float* spare;  // [kKeyTile][Dp]
  ScoreTile<kWideRows> scores;
};

static void start_fused_part(const BackwardInputs& inputs, const QueryTile& tile,
                             ScratchCursor& cursor, float* spare, FusedPart& part) {
  constexpr int kRows = kWideRows;
  const TileInputs& in = inputs.tile;
  const int padded = padded_dim(in.head_dim);
  part.tile = tile;
  part.rows = cursor.take(2 * kRows * padded);
  part.d_out = cursor.take(kRows * padded);
  part.panel = cursor.take(2 * kRows * padded);
  part.d_out_panel = cursor.take(kRows * padded);
  part.sums = cursor.take(2 * kRows * padded);
  load_query_panel<kRows>(in, tile, part.rows, part.panel);
  load_rows(part.d_out, inputs.d_out, tile, in.group, in.head_dim, padded, kRows);
  transpose(part.d_out_panel, kRows, part.d_out, padded, kRows, padded);
  load_row_constants<kRows>(inputs, tile, part.d_out_panel, spare, part.sums, part.constants);
  for (int64_t idx = 0; idx < static_cast<int64_t>(padded) * 2 * kRows; ++idx) part.sums[idx] = 0;
  part.finite = all_finite(part.rows, static_cast<int64_t>(2) * kRows * padded) &&
                all_finite(part.d_out, static_cast<int64_t>(kRows) * padded);
  part.limits = row_limits<kRows>(in.band, tile, in.group);
  // A row that does not exist sees nothing: it must not add to the gradients of a key.
  for (int row = static_cast<int>(tile.num_rows); row < kRows; ++row)
    part.limits.begin[row] = part.limits.end[row] = 0;
  if (tile.num_rows < kRows) part.limits.max_begin = in.band.end;  // cuts every tile of keys
}

/// The rows that a gradient of keys is made of, and their weights for each key. Weights row and
/// row + kWideRows belong to one query.
struct WeightedRows {
  const float* rows;  // [count][Dp]
  FloatRows weights;
  int count;
};

/// sums[key][d] (+)= sum over the rows of weights[key][row] rows[row][d]. Hidden pairs add nothing,
/// though 0 times a NaN is not 0.
template <Sums kSums>
static void add_key_part(const FusedPart& part, const ScoreTile<kWideRows>& scores,
                         Rows<float> sums, const WeightedRows& from, float* spare) {
  const int64_t padded = sums.stride;
  const ProductSize size{scores.num_keys, from.count};
  if (part.finite || !scores.masked) {
    row_product<kSums>(sums, from.weights, {from.rows, padded}, size, padded);
    return;
  }
  copy_finite_rows(spare, {from.rows, padded}, from.count, padded);
  row_product<kSums>(sums, from.weights, {spare, padded}, size, padded);
  for (int row = 0; row < from.count; ++row) {
    const float* const source = from.rows + row * padded;
    if (all_finite(source, padded)) continue;
    for (int64_t key = scores.begin[row % kWideRows];
         key < scores.end[row % kWideRows] && key < scores.num_keys; ++key)
      for (int d = 0; d < padded; ++d)
        sums.data[key * padded + d] +=
            from.weights.data[key * from.weights.stride + row] * source[d];
  }
}

/// One tile of keys against one part.
template <Sums kSums>
static void fused_step(const TileInputs& in, const FusedKeys& keys, FusedPart& part,
                       FusedWork& work) {
  constexpr int kRows = kWideRows;
  const ProductSize size{keys.num_keys, in.head_dim};
  ScoreTile<kRows>& scores = work.scores;
  scores.num_keys = keys.num_keys;
  scores.masked = part.limits.cut(keys.first_key, keys.num_keys);
  if (scores.masked) part.limits.relative(keys.first_key, scores.begin, scores.end);
  set_product<kRows>(work.g, keys.v, part.d_out_panel, size);
  work.next.ask();
  set_product<2 * kRows>(scores.scores, keys.k, part.panel, size);
  work.next.ask();
  query_score_gradients<kRows, /*kWeights=*/true>(scores, work.g, part.constants, in.softmax_scale);
  scores.add_product(part.sums, keys.k, in.head_dim, work.spare);
  work.next.ask();
  add_key_part<kSums>(part, scores, keys.dk, {part.rows, {scores.scores, 2 * kRows}, 2 * kRows},
                      work.spare);
  work.next.ask();
  add_key_part<kSums>(part, scores, keys.dv, {part.d_out, {work.g, kRows}, kRows}, work.spare);
}

/// One tile of keys against all parts that see it: at least one does.
static void fused_steps(const TileInputs& in, const FusedKeys& keys, FusedPart* parts,
                        int num_parts, FusedWork& work) {
  bool is_first = true;
  for (int idx = 0; idx < num_parts; ++idx) {
    if (!parts[idx].sees(keys.first_key)) continue;
    if (is_first)
      fused_step<Sums::kSet>(in, keys, parts[idx], work);
    else
      fused_step<Sums::kAdd>(in, keys, parts[idx], work);
    is_first = false;
  }
}

/// sums += part, or the total to `target` at the last turn. part becomes the total.
static void add_key_rows(const RowTensor<void>& sums, const RowTensor<void>& target,
                         const FusedKeys& keys, Rows<float> part, KeyTurn turn, int head_dim) {
  for (int64_t idx = 0; idx < keys.num_added; ++idx) {
    float* const total = part.data + idx * part.stride;
    auto* const sum = static_cast<float*>(row_address(sums, keys.first_key + idx, 1));
    if (idx >= keys.num_keys)
      for (int d = 0; d < head_dim; ++d) total[d] = 0.0f;
    if (!turn.is_first)
      for (int d = 0; d < head_dim; ++d) total[d] += sum[d];
    if (turn.is_last)
      store_row(row_address(target, keys.first_key + idx, 1), target.dtype, total, head_dim);
    else
      store_row(sum, DType::kFloat32, total, head_dim);
  }
}

static void fused_backward_tile(const BackwardInputs& inputs, const QueryTile& tile,
                                const FusedGradients& gradients, float* scratch) {
  const TileInputs& in = inputs.tile;
  const int head_dim = in.head_dim;
  const int padded = padded_dim(head_dim);
  ScratchCursor cursor{scratch};
  float* const key_rows = cursor.take(2 * kKeyTile * padded);
  FusedKeys keys{.first_key = 0,
                 .num_keys = 0,
                 .num_added = 0,
                 .k = {},
                 .v = {},
                 .dk = {cursor.take(kKeyTile * padded), padded},
                 .dv = {cursor.take(kKeyTile * padded), padded}};
  FusedWork work{.next = {{key_rows_of(in.k), key_rows_of(in.v), constant(gradients.dk_sums),
                           constant(gradients.dv_sums)},
                          head_dim},
                 .g = cursor.take(kKeyTile * kWideRows),
                 .spare = cursor.take(kKeyTile * padded),
                 .scores = {.scores = cursor.take(kKeyTile * 2 * kWideRows),
                            .num_keys = 0,
                            .softmax_scale = in.softmax_scale,
                            .masked = false,
                            .begin = {},
                            .end = {}}};
  FusedPart parts[kFusedParts];
  const int num_parts = static_cast<int>((tile.num_rows + kWideRows - 1) / kWideRows);
  for (int idx = 0; idx < num_parts; ++idx)
    start_fused_part(inputs, tile_part<kWideRows>(in, tile, idx), cursor, work.spare, parts[idx]);

  for (int64_t key = tile.key_begin / kKeyTile * kKeyTile; key < tile.key_end; key += kKeyTile) {
    const int64_t seen = tile.key_end - key, left = in.band.end - key;
    keys.first_key = key;
    keys.num_keys = seen < kKeyTile ? seen : kKeyTile;
    keys.num_added = left < kKeyTile ? left : kKeyTile;
    keys.k = load_keys(in.k, key, keys.num_keys, head_dim, padded, key_rows);
    keys.v = load_keys(in.v, key, keys.num_keys, head_dim, padded, key_rows + kKeyTile * padded);
    work.next.start(key + kKeyTile, tile.key_end, 4 * num_parts);
    fused_steps(in, keys, parts, num_parts, work);
    const KeyTurn turn = gradients.turns.wait(gradients.turns.queue, key / kKeyTile);
    add_key_rows(gradients.dk_sums, gradients.dk, keys, keys.dk, turn, head_dim);
    add_key_rows(gradients.dv_sums, gradients.dv, keys, keys.dv, turn, head_dim);
    gradients.turns.pass(gradients.turns.queue, key / kKeyTile);
  }
  for (int idx = 0; idx < num_parts; ++idx) {
    transpose(key_rows, padded, parts[idx].sums, 2 * kWideRows, padded, 2 * kWideRows);
    store_rows(gradients.dq, key_rows, parts[idx].tile, in.group, head_dim, padded);
    store_rows(gradients.dr, key_rows + kWideRows * padded, parts[idx].tile, in.group, head_dim,
               padded);
  }
}

}  // namespace
}  // namespace parallax::cpu
