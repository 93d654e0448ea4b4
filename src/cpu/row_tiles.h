// How a call is cut into tiles: which rows and keys, and where their data lies. The cut depends on
// the arguments only, never on the number of threads.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "core/problem.h"
#include "cpu/kernels.h"

namespace parallax::cpu {

constexpr int64_t divide_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

/// The rows of `tensor` (shaped like q) that belong to one sequence and key head.
RowTensor<const void> group_rows(const core::Problem& problem, const ConstTensorView& tensor,
                                 const core::Sequence& sequence, int64_t head_kv);
RowTensor<void> group_rows(const core::Problem& problem, const TensorView& tensor,
                           const core::Sequence& sequence, int64_t head_kv);

/// The same of a [B, Hq, Tq] tensor.
RowScalars<const float> group_scalars(const core::Problem& problem, const ConstTensorView& tensor,
                                      const core::Sequence& sequence, int64_t head_kv);
RowScalars<float> group_scalars(const core::Problem& problem, const TensorView& tensor,
                                const core::Sequence& sequence, int64_t head_kv);

/// The rows of a gradient shaped like k.
RowTensor<void> head_rows(const core::Problem& problem, const TensorView& tensor,
                          const core::Sequence& sequence, int64_t head_kv);

TileInputs tile_inputs(const core::Problem& problem, const core::Sequence& sequence,
                       int64_t head_kv);

/// One tile of rows of one sequence and key head.
struct RowTile {
  int64_t sequence_idx = 0;
  int64_t head_kv = 0;
  QueryTile tile{};
  int rows = 0;  // which kernel: the table's wide_rows, or kNarrowRows
};

/// Pairs of a sequence and a key head, numbered sequence * Hkv + head: first .. end.
struct HeadRange {
  int64_t first, end;
};

/// Numbers all tiles of a call: sequences, then key heads, then tiles from the last to the first,
/// since under a causal mask the last has the most work. `tiles_of(sequence)` is the tile count per
/// key head.
class TileNumbering {
 public:
  template <typename TilesOf>
  TileNumbering(const core::Problem& problem, TilesOf tiles_of) : num_heads_(problem.num_heads_kv) {
    starts_.reserve(problem.sequences.size() + 1);
    starts_.push_back(0);
    for (const core::Sequence& sequence : problem.sequences)
      starts_.push_back(starts_.back() + num_heads_ * tiles_of(sequence));
  }

  int64_t count() const { return starts_.back(); }
  /// The number of the first tile of a head, or of the one behind the last tile.
  int64_t first_of(int64_t head) const;

  struct Place {
    int64_t sequence_idx, head_kv, tile_idx;
  };
  Place operator[](int64_t number) const;

 private:
  int64_t num_heads_;
  std::vector<int64_t> starts_;
};

/// Rows of a sequence per key head.
inline int64_t num_rows(const core::Problem& problem, const core::Sequence& sequence) {
  return sequence.num_queries * problem.group_size;
}

/// Rows of a sequence and key head: begin .. end.
struct RowSpan {
  int64_t begin, end;
};

/// The rows of tokens that see one of `keys`. A tile of rows sees one of them exactly if it has one
/// of these rows: what the tokens of a tile see has no gaps.
RowSpan rows_that_see(const core::Problem& problem, const core::Sequence& sequence,
                      core::KeyRange keys);

/// Tiles of `wide_rows` rows of all sequences.
TileNumbering number_row_tiles(const core::Problem& problem, int wide_rows);
RowTile row_tile(const core::Problem& problem, const TileNumbering::Place& place, int wide_rows);

}  // namespace parallax::cpu
