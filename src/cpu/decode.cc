// Decode: the forward tiles over a cache. One tile of rows reads each key and value once for all
// heads of the group. Caches are cut into pieces of keys, and a task takes one piece for several
// key heads, whose keys lie side by side; the pieces' sums are added in the order of the keys.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/attention.h"
#include "cpu/packed_operand.h"
#include "cpu/scratch.h"

namespace parallax::cpu {
namespace {

constexpr int64_t kMinPieceKeys = 512;
constexpr int64_t kMaxPieces = 16;
constexpr int64_t kPieceUnit = 64;  // keys; whole steps of every kernel but the last

/// Pieces' states are merged, and their memory used again, once they fill this much: 16 MiB.
constexpr int64_t kStateFloats = int64_t{1} << 22;

int64_t piece_keys(int64_t num_keys) {
  return std::max(kMinPieceKeys,
                  divide_up(divide_up(num_keys, kMaxPieces), kPieceUnit) * kPieceUnit);
}

/// One row tile and its pieces.
struct SplitTile {
  RowTile tile;
  int64_t num_pieces = 1;
  int64_t state_offset = 0;    // floats into the workspace; unused for a single piece
  bool merges_before = false;  // the tiles before it: its states take the place of theirs
};

/// One piece of the keys for the tiles first_tile .. first_tile + num_heads, which differ in the
/// key head only.
struct PieceTask {
  int64_t first_tile;
  int num_heads;
  int64_t piece;
};

struct DecodePlan {
  std::vector<SplitTile> tiles;
  std::vector<PieceTask> tasks;
  int64_t workspace_floats = 0;
};

/// Tasks of a call below which heads are not taken together, so that the threads have work.
constexpr int64_t kMinTasks = 16;

/// How many of a sequence's key heads a task takes.
int heads_per_task(const core::Problem& problem, int64_t num_pieces) {
  const auto num_sequences = static_cast<int64_t>(problem.sequences.size());
  const int64_t parts = divide_up(kMinTasks, num_sequences * num_pieces);
  const int64_t heads = divide_up(problem.num_heads_kv, parts);
  return static_cast<int>(std::min<int64_t>(heads, kMaxTileHeads));
}

DecodePlan make_plan(const Kernels& kernels, const core::Problem& problem) {
  DecodePlan plan;
  int64_t used_floats = 0;
  const TileNumbering numbering = number_row_tiles(problem, kernels.wide_rows);
  for (int64_t number = 0; number < numbering.count();) {
    const RowTile tile = row_tile(problem, numbering[number], kernels.wide_rows);
    const core::Sequence& sequence = problem.sequences[static_cast<size_t>(tile.sequence_idx)];
    const int64_t num_keys = tile.tile.key_end - tile.tile.key_begin;
    const bool is_whole = num_rows(problem, sequence) <= kernels.wide_rows;
    const int64_t num_pieces =
        is_whole && num_keys > 0 ? divide_up(num_keys, piece_keys(num_keys)) : 1;
    const bool is_narrow = is_whole && tile.rows == kNarrowRows;
    const auto num_heads =
        static_cast<int>(is_narrow ? std::min<int64_t>(heads_per_task(problem, num_pieces),
                                                       problem.num_heads_kv - tile.head_kv)
                                   : 1);
    for (int64_t piece = 0; piece < num_pieces; ++piece)
      plan.tasks.push_back({.first_tile = number, .num_heads = num_heads, .piece = piece});
    const bool merges_before = used_floats > kStateFloats;
    if (merges_before) used_floats = 0;
    for (int head = 0; head < num_heads; ++head, ++number) {
      plan.tiles.push_back({.tile = row_tile(problem, numbering[number], kernels.wide_rows),
                            .num_pieces = num_pieces,
                            .state_offset = used_floats,
                            .merges_before = merges_before && head == 0});
      if (num_pieces > 1)
        used_floats += num_pieces * state_floats(kernels.padded_dim(problem.head_dim), tile.rows);
    }
    plan.workspace_floats = std::max(plan.workspace_floats, used_floats);
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
        workspace_(new float[static_cast<size_t>(plan_.workspace_floats)]) {}

  void run() {
    const auto bytes_of = [&](const core::Sequence& sequence) {
      return PackedKeys::bytes_of(kernels_, problem_, sequence, kForwardForms);
    };
    auto first = plan_.tasks.begin();
    for (const HeadRange& heads : head_waves(kernels_, problem_, bytes_of)) {
      const PackedKeys packed(kernels_, problem_, heads, kForwardForms);
      while (first != plan_.tasks.end() && head_of(*first) < heads.end) {
        const auto end = std::find_if(first + 1, plan_.tasks.end(), [&](const PieceTask& task) {
          return head_of(task) >= heads.end || (task.piece == 0 && first_tile(task).merges_before);
        });
        run_tasks(first, end, packed);
        first = end;
      }
    }
  }

 private:
  using Task = std::vector<PieceTask>::const_iterator;

  /// All pieces of some tiles, and what follows from them.
  void run_tasks(Task first, Task end, const PackedKeys& packed) {
    core::parallel_for(end - first, [&](int64_t idx) { run_piece(first[idx], packed); });
    const PieceTask& last = *(end - 1);
    const int64_t num_tiles = last.first_tile + last.num_heads - first->first_tile;
    const SplitTile* const tiles = &first_tile(*first);
    if (std::any_of(tiles, tiles + num_tiles, [](const auto& tile) { return tile.num_pieces > 1; }))
      core::parallel_for(num_tiles, [&](int64_t idx) { merge_pieces(tiles[idx]); });
  }

  const SplitTile& first_tile(const PieceTask& task) const {
    return plan_.tiles[static_cast<size_t>(task.first_tile)];
  }

  /// The first head of a task; later tasks have later ones.
  int64_t head_of(const PieceTask& task) const {
    const RowTile& tile = first_tile(task).tile;
    return tile.sequence_idx * problem_.num_heads_kv + tile.head_kv;
  }

  const core::Sequence& sequence(const RowTile& tile) const {
    return problem_.sequences[static_cast<size_t>(tile.sequence_idx)];
  }

  TileState state(const SplitTile& split, int64_t piece) const {
    const int rows = split.tile.rows;
    return carve_state(workspace_.get() + split.state_offset + piece * state_floats(padded_, rows),
                       padded_, rows);
  }

  void run_piece(const PieceTask& task, const PackedKeys& packed) {
    const SplitTile* const tiles = &first_tile(task);
    const int rows = tiles[0].tile.rows;
    const int64_t num_pieces = tiles[0].num_pieces;
    const int64_t scratch_floats = kernels_.scratch_floats(padded_);
    const int64_t floats_per_state = state_floats(padded_, rows);
    float* const scratch = thread_scratch(scratch_floats + task.num_heads * floats_per_state);
    TileInputs inputs[kMaxTileHeads];
    TileState states[kMaxTileHeads];
    for (int head = 0; head < task.num_heads; ++head) {
      const RowTile& tile = tiles[head].tile;
      inputs[head] = tile_inputs(problem_, sequence(tile), tile.head_kv);
      if (rows != kNarrowRows) packed.add_to(inputs[head], tile.sequence_idx, tile.head_kv);
      states[head] =
          num_pieces > 1
              ? state(tiles[head], task.piece)
              : carve_state(scratch + scratch_floats + head * floats_per_state, padded_, rows);
    }
    QueryTile part = tiles[0].tile.tile;
    if (num_pieces > 1) {
      const int64_t step = piece_keys(part.key_end - part.key_begin);
      part.key_begin += task.piece * step;
      part.key_end = std::min(part.key_begin + step, part.key_end);
    }
    if (rows == kNarrowRows)
      kernels_.narrow_forward({.inputs = inputs, .states = states, .count = task.num_heads}, part,
                              scratch);
    else
      kernels_.forward(inputs[0], part, rows, states[0], scratch);
    if (num_pieces > 1) return;
    for (int head = 0; head < task.num_heads; ++head)
      finish(inputs[head], tiles[head].tile, states[head], scratch);
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
  const std::unique_ptr<float[]> workspace_;
};

}  // namespace

void decode(const Kernels& kernels, const DecodeArgs& args) { Decoder(kernels, args).run(); }

}  // namespace parallax::cpu
