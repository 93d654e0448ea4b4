// Backward as two passes over disjoint outputs: dq and dr by tiles of rows, then dk and dv by tiles
// of keys. 11 matrix products per pair of tiles, but no sums that tasks share.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/backward.h"
#include "cpu/scratch.h"

namespace parallax::cpu {
namespace {

/// The call in normal form, with the per-row numbers that the first pass leaves to the second.
struct BackwardPlan {
  const BackwardArgs& args;
  core::Problem problem;
  std::vector<int64_t> stats_starts;  // per sequence; key heads follow each other
  std::vector<RowStats> stats;
  PackedKeys packed_keys;
  PackedOperand packed_q, packed_r, packed_d_out;

  BackwardPlan(const Kernels& kernels, const BackwardArgs& backward_args)
      : args(backward_args),
        problem(core::make_problem(backward_args)),
        packed_keys(kernels, problem, PackedForm::kBoth, PackedForm::kTiles) {
    int64_t count = 0;
    for (const core::Sequence& sequence : problem.sequences) {
      stats_starts.push_back(count);
      count += problem.num_heads_kv * num_rows(problem, sequence);
    }
    stats.resize(static_cast<size_t>(count));
    const auto pack = [&](const ConstTensorView& tensor) {
      const RowSource source = [&](const core::Sequence& sequence, int64_t head_kv) {
        return group_rows(problem, tensor, sequence, head_kv);
      };
      return PackedOperand(kernels, problem, source, PackedForm::kBoth);
    };
    packed_q = pack(args.q);
    packed_r = pack(args.r);
    packed_d_out = pack(args.d_out);
  }

  const core::Sequence& sequence(int64_t idx) const {
    return problem.sequences[static_cast<size_t>(idx)];
  }

  RowStats* stats_of(int64_t sequence_idx, int64_t head_kv) {
    return stats.data() + stats_starts[static_cast<size_t>(sequence_idx)] +
           head_kv * num_rows(problem, sequence(sequence_idx));
  }

  BackwardInputs inputs(int64_t sequence_idx, int64_t head_kv) const {
    const core::Sequence& sequence = this->sequence(sequence_idx);
    BackwardInputs inputs = backward_inputs(problem, args, sequence, head_kv);
    packed_keys.add_to(inputs.tile, sequence_idx, head_kv);
    inputs.packed_q = packed_q.of(sequence_idx, head_kv);
    inputs.packed_r = packed_r.of(sequence_idx, head_kv);
    inputs.packed_d_out = packed_d_out.of(sequence_idx, head_kv);
    return inputs;
  }
};

void run_query_pass(const Kernels& kernels, BackwardPlan& plan) {
  const TileNumbering tiles = number_row_tiles(plan.problem, kernels.wide_rows);
  const int64_t padded = kernels.padded_dim(plan.problem.head_dim);
  core::parallel_for(tiles.count(), [&](int64_t task) {
    const RowTile tile = row_tile(plan.problem, tiles[task], kernels.wide_rows);
    const core::Sequence& sequence = plan.sequence(tile.sequence_idx);
    const QueryGradients gradients{
        .dq = group_rows(plan.problem, plan.args.dq, sequence, tile.head_kv),
        .dr = group_rows(plan.problem, plan.args.dr, sequence, tile.head_kv),
        .stats = plan.stats_of(tile.sequence_idx, tile.head_kv)};
    kernels.backward_query(plan.inputs(tile.sequence_idx, tile.head_kv), tile.tile, gradients,
                           thread_scratch(kernels.scratch_floats(padded)));
  });
}

/// The tokens that see a key of [first_key, end_key), as rows of tile.band.
KeyTile key_tile(const core::Problem& problem, const core::Sequence& sequence, const Band& band,
                 core::KeyRange keys) {
  const auto [first_key, end_key] = keys;
  const int64_t first_token = std::max<int64_t>(0, first_key - band.end_offset + 1);
  const int64_t end_token = std::min(sequence.num_queries, end_key - band.begin_offset);
  return {.first_key = first_key,
          .num_keys = end_key - first_key,
          .row_begin = first_token * problem.group_size,
          .row_end = std::max(first_token, end_token) * problem.group_size,
          .stats = nullptr,
          .dk = {},
          .dv = {}};
}

void run_key_pass(const Kernels& kernels, BackwardPlan& plan) {
  const TileNumbering tiles(plan.problem, [&](const core::Sequence& sequence) {
    return divide_up(sequence.keys.end, kernels.key_tile);
  });
  const int64_t padded = kernels.padded_dim(plan.problem.head_dim);
  core::parallel_for(tiles.count(), [&](int64_t task) {
    const auto [sequence_idx, head_kv, tile_idx] = tiles[task];
    const core::Sequence& sequence = plan.sequence(sequence_idx);
    const BackwardInputs inputs = plan.inputs(sequence_idx, head_kv);
    const int64_t first_key = tile_idx * kernels.key_tile;
    const int64_t end_key = std::min(first_key + kernels.key_tile, sequence.keys.end);
    KeyTile tile = key_tile(plan.problem, sequence, inputs.tile.band, {first_key, end_key});
    tile.stats = plan.stats_of(sequence_idx, head_kv);
    tile.dk = head_rows(plan.problem, plan.args.dk, sequence, head_kv);
    tile.dv = head_rows(plan.problem, plan.args.dv, sequence, head_kv);
    kernels.backward_key(inputs, tile, thread_scratch(kernels.scratch_floats(padded)));
  });
}

}  // namespace

void two_pass_backward(const Kernels& kernels, const BackwardArgs& args) {
  BackwardPlan plan(kernels, args);
  run_query_pass(kernels, plan);
  run_key_pass(kernels, plan);
}

}  // namespace parallax::cpu
