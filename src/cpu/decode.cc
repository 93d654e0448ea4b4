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

int64_t piece_keys(int64_t num_keys) {
  return std::max(kMinPieceKeys, divide_up(divide_up(num_keys, kMaxPieces), kKeyTile) * kKeyTile);
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

DecodePlan make_plan(const core::Problem& problem) {
  DecodePlan plan;
  const TileNumbering numbering = number_row_tiles(problem);
  for (int64_t number = 0; number < numbering.count(); ++number) {
    SplitTile split{.tile = row_tile(problem, numbering[number])};
    const core::Sequence& sequence =
        problem.sequences[static_cast<size_t>(split.tile.sequence_idx)];
    const int64_t num_keys = split.tile.tile.key_end - split.tile.tile.key_begin;
    if (num_rows(problem, sequence) <= kWideRows && num_keys > 0)
      split.num_pieces = divide_up(num_keys, piece_keys(num_keys));
    split.first_task = static_cast<int64_t>(plan.tile_of_task.size());
    plan.tile_of_task.insert(plan.tile_of_task.end(), static_cast<size_t>(split.num_pieces),
                             number);
    if (split.num_pieces > 1) {
      split.state_offset = plan.workspace_floats;
      plan.workspace_floats +=
          split.num_pieces * state_floats(padded_dim(problem), split.tile.rows);
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
        padded_(padded_dim(problem_)),
        plan_(make_plan(problem_)),
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
    const TileInputs inputs = tile_inputs(problem_, sequence(tile), tile.head_kv);
    float* const scratch =
        thread_scratch(scratch_floats(padded_) + state_floats(padded_, kWideRows));
    if (split.num_pieces == 1) {
      const TileState whole = carve_state(scratch + scratch_floats(padded_), padded_, tile.rows);
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
           thread_scratch(scratch_floats(padded_)));
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
  const std::unique_ptr<float[]> workspace_;
};

}  // namespace

void decode(const Kernels& kernels, const DecodeArgs& args) { Decoder(kernels, args).run(); }

}  // namespace parallax::cpu
