// Decode: the forward tiles over a cache. One tile of rows reads each key and value once for all
// heads of the group; where that leaves too few tasks, the keys are split too and the pieces'
// sums are added in the order of the keys.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/attention.h"
#include "cpu/scratch.h"

namespace parallax::cpu {
namespace {

constexpr int64_t kMinPieceKeys = 512;
constexpr int64_t kMaxPieces = 16;
constexpr int64_t kPieceUnit = 64;  // keys; whole steps of every kernel but the last

int64_t piece_keys(int64_t num_keys) {
  return std::max(kMinPieceKeys,
                  divide_up(divide_up(num_keys, kMaxPieces), kPieceUnit) * kPieceUnit);
}

/// The pieces of one row tile: tasks first_task .. first_task + count.
struct SplitTile {
  RowTile tile;
  int64_t first_task = 0;
  int64_t num_pieces = 1;
  int64_t state_offset = 0;  // floats into the workspace; unused for a single piece
};

struct DecodePlan {
  std::vector<SplitTile> tiles;
  std::vector<int64_t> tile_of_task;
  int64_t workspace_floats = 0;
};

DecodePlan make_plan(const Kernels& kernels, const core::Problem& problem) {
  DecodePlan plan;
  const TileNumbering numbering = number_row_tiles(problem, kernels.wide_rows);
  for (int64_t number = 0; number < numbering.count(); ++number) {
    SplitTile split{.tile = row_tile(problem, numbering[number], kernels.wide_rows)};
    const core::Sequence& sequence =
        problem.sequences[static_cast<size_t>(split.tile.sequence_idx)];
    const int64_t num_keys = split.tile.tile.key_end - split.tile.tile.key_begin;
    if (num_rows(problem, sequence) <= kernels.wide_rows && num_keys > 0)
      split.num_pieces = divide_up(num_keys, piece_keys(num_keys));
    split.first_task = static_cast<int64_t>(plan.tile_of_task.size());
    plan.tile_of_task.insert(plan.tile_of_task.end(), static_cast<size_t>(split.num_pieces),
                             number);
    if (split.num_pieces > 1) {
      split.state_offset = plan.workspace_floats;
      plan.workspace_floats +=
          split.num_pieces * state_floats(kernels.padded_dim(problem.head_dim), split.tile.rows);
    }
    plan.tiles.push_back(split);
  }
  return plan;
}

/// One decode call: its plan, its workspace and its two steps.
class Decoder {
 public:
  Decoder(const Kernels& kernels, const DecodeArgs& args)
      : kernels_(kernels),
        args_(args),
        problem_(core::make_problem(args)),
        padded_(kernels.padded_dim(problem_.head_dim)),
        plan_(make_plan(kernels, problem_)),
        packed_(pack_keys()),
        workspace_(new float[static_cast<size_t>(plan_.workspace_floats)]) {}

  void run() {
    core::parallel_for(static_cast<int64_t>(plan_.tile_of_task.size()),
                       [this](int64_t task) { run_piece(task); });
    if (plan_.workspace_floats > 0)
      core::parallel_for(static_cast<int64_t>(plan_.tiles.size()), [this](int64_t idx) {
        merge_pieces(plan_.tiles[static_cast<size_t>(idx)]);
      });
  }

 private:
  /// Only wide tiles read packed operands: a cache is not copied to decode a few rows.
  PackedKeys pack_keys() const {
    const bool any_wide = std::ranges::any_of(
        plan_.tiles, [](const SplitTile& split) { return split.tile.rows != kNarrowRows; });
    if (!any_wide) return {};
    return {kernels_, problem_, PackedForm::kTiles, PackedForm::kTransposed};
  }

  const core::Sequence& sequence(const RowTile& tile) const {
    return problem_.sequences[static_cast<size_t>(tile.sequence_idx)];
  }

  TileState state(const SplitTile& split, int64_t piece) const {
    const int rows = split.tile.rows;
    return carve_state(workspace_.get() + split.state_offset + piece * state_floats(padded_, rows),
                       padded_, rows);
  }

  void run_piece(int64_t task) {
    const SplitTile& split =
        plan_.tiles[static_cast<size_t>(plan_.tile_of_task[static_cast<size_t>(task)])];
    const RowTile& tile = split.tile;
    TileInputs inputs = tile_inputs(problem_, sequence(tile), tile.head_kv);
    packed_.add_to(inputs, tile.sequence_idx, tile.head_kv);
    const int64_t scratch_floats = kernels_.scratch_floats(padded_);
    float* const scratch =
        thread_scratch(scratch_floats + state_floats(padded_, kernels_.wide_rows));
    if (split.num_pieces == 1) {
      const TileState whole = carve_state(scratch + scratch_floats, padded_, tile.rows);
      kernels_.forward(inputs, tile.tile, tile.rows, whole, scratch);
      finish(inputs, tile, whole, scratch);
      return;
    }
    const int64_t piece = task - split.first_task;
    QueryTile part = tile.tile;
    const int64_t step = piece_keys(part.key_end - part.key_begin);
    part.key_begin += piece * step;
    part.key_end = std::min(part.key_begin + step, part.key_end);
    kernels_.forward(inputs, part, tile.rows, state(split, piece), scratch);
  }

  void merge_pieces(const SplitTile& split) {
    if (split.num_pieces == 1) return;
    const TileState total = state(split, 0);
    for (int64_t piece = 1; piece < split.num_pieces; ++piece)
      kernels_.merge(total, state(split, piece), static_cast<int>(problem_.head_dim),
                     split.tile.rows);
    finish(tile_inputs(problem_, sequence(split.tile), split.tile.head_kv), split.tile, total,
           thread_scratch(kernels_.scratch_floats(padded_)));
  }

  void finish(const TileInputs& inputs, const RowTile& tile, const TileState& total,
              float* scratch) const {
    kernels_.finish(inputs, tile.tile, tile.rows, total,
                    forward_outputs(problem_, args_, sequence(tile), tile.head_kv), scratch);
  }

  const Kernels& kernels_;
  const DecodeArgs& args_;
  const core::Problem problem_;
  const int64_t padded_;
  const DecodePlan plan_;
  const PackedKeys packed_;
  const std::unique_ptr<float[]> workspace_;
};

}  // namespace

void decode(const Kernels& kernels, const DecodeArgs& args) { Decoder(kernels, args).run(); }

}  // namespace parallax::cpu
