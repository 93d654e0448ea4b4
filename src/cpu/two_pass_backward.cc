// Backward as two passes over disjoint outputs: dq and dr by tiles of rows, then dk and dv by tiles
// of keys. 11 matrix products per pair of tiles, but no sums that tasks share.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/backward.h"
#include "cpu/packed_operand.h"
#include "cpu/scratch.h"

namespace parallax::cpu {
namespace {

/// One wave of heads, with the per-row numbers that the first pass leaves to the second.
class BackwardWave {
 public:
  BackwardWave(const Kernels& kernels, const BackwardArgs& args, const core::Problem& problem,
               HeadRange heads)
      : args_(args),
        problem_(problem),
        heads_(heads),
        packed_keys_(kernels, problem, heads, kBackwardForms),
        packed_q_(pack(kernels, args.q)),
        packed_r_(pack(kernels, args.r)),
        packed_d_out_(pack(kernels, args.d_out)) {
    int64_t count = 0;
    for (int64_t head = heads.first; head < heads.end; ++head) {
      stats_starts_.push_back(count);
      count += num_rows(problem, sequence(head / problem.num_heads_kv));
    }
    stats_.resize(static_cast<size_t>(count));
  }

  /// What one head of the sequence takes.
  static int64_t bytes_of(const Kernels& kernels, const core::Problem& problem,
                          const core::Sequence& sequence) {
    constexpr int64_t kRowForms = 2 * 3;  // q, r, d_out
    const int64_t rows = num_rows(problem, sequence);
    return PackedKeys::bytes_of(kernels, problem, sequence, kBackwardForms) +
           kRowForms * packed_bytes(kernels, problem, rows) +
           rows * static_cast<int64_t>(sizeof(RowStats));
  }

  const BackwardArgs& args() const { return args_; }
  const core::Problem& problem() const { return problem_; }
  HeadRange heads() const { return heads_; }
  const core::Sequence& sequence(int64_t idx) const {
    return problem_.sequences[static_cast<size_t>(idx)];
  }

  RowStats* stats_of(int64_t sequence_idx, int64_t head_kv) {
    const int64_t head = sequence_idx * problem_.num_heads_kv + head_kv - heads_.first;
    return stats_.data() + stats_starts_[static_cast<size_t>(head)];
  }

  BackwardInputs inputs(int64_t sequence_idx, int64_t head_kv) const {
    BackwardInputs inputs = backward_inputs(problem_, args_, sequence(sequence_idx), head_kv);
    packed_keys_.add_to(inputs.tile, sequence_idx, head_kv);
    inputs.packed_q = packed_q_.of(sequence_idx, head_kv);
    inputs.packed_r = packed_r_.of(sequence_idx, head_kv);
    inputs.packed_d_out = packed_d_out_.of(sequence_idx, head_kv);
    return inputs;
  }

 private:
  PackedOperand pack(const Kernels& kernels, const ConstTensorView& tensor) const {
    const RowSource source = [&](const core::Sequence& sequence, int64_t head_kv) {
      return group_rows(problem_, tensor, sequence, head_kv);
    };
    return {kernels, problem_, heads_, source, PackedForm::kBoth};
  }

  const BackwardArgs& args_;
  const core::Problem& problem_;
  HeadRange heads_;
  PackedKeys packed_keys_;
  PackedOperand packed_q_, packed_r_, packed_d_out_;
  std::vector<int64_t> stats_starts_{};  // per head
  std::vector<RowStats> stats_{};
};

void run_query_pass(const Kernels& kernels, BackwardWave& wave) {
  const core::Problem& problem = wave.problem();
  const TileNumbering tiles = number_row_tiles(problem, kernels.wide_rows);
  const int64_t first_tile = tiles.first_of(wave.heads().first);
  const int64_t padded = kernels.padded_dim(problem.head_dim);
  core::parallel_for(tiles.first_of(wave.heads().end) - first_tile, [&](int64_t task) {
    const RowTile tile = row_tile(problem, tiles[first_tile + task], kernels.wide_rows);
    const core::Sequence& sequence = wave.sequence(tile.sequence_idx);
    const QueryGradients gradients{
        .dq = group_rows(problem, wave.args().dq, sequence, tile.head_kv),
        .dr = group_rows(problem, wave.args().dr, sequence, tile.head_kv),
        .stats = wave.stats_of(tile.sequence_idx, tile.head_kv)};
    kernels.backward_query(wave.inputs(tile.sequence_idx, tile.head_kv), tile.tile, gradients,
                           thread_scratch(kernels.scratch_floats(padded)));
  });
}

void run_key_pass(const Kernels& kernels, BackwardWave& wave) {
  const core::Problem& problem = wave.problem();
  const TileNumbering tiles(problem, [&](const core::Sequence& sequence) {
    return divide_up(sequence.keys.end, kernels.key_tile);
  });
  const int64_t first_tile = tiles.first_of(wave.heads().first);
  const int64_t padded = kernels.padded_dim(problem.head_dim);
  core::parallel_for(tiles.first_of(wave.heads().end) - first_tile, [&](int64_t task) {
    const auto [sequence_idx, head_kv, tile_idx] = tiles[first_tile + task];
    const core::Sequence& sequence = wave.sequence(sequence_idx);
    const BackwardInputs inputs = wave.inputs(sequence_idx, head_kv);
    const int64_t first_key = tile_idx * kernels.key_tile;
    const int64_t end_key = std::min(first_key + kernels.key_tile, sequence.keys.end);
    const RowSpan rows = rows_that_see(problem, sequence, {first_key, end_key});
    const KeyTile tile{.first_key = first_key,
                       .num_keys = end_key - first_key,
                       .row_begin = rows.begin,
                       .row_end = rows.end,
                       .stats = wave.stats_of(sequence_idx, head_kv),
                       .dk = head_rows(problem, wave.args().dk, sequence, head_kv),
                       .dv = head_rows(problem, wave.args().dv, sequence, head_kv)};
    kernels.backward_key(inputs, tile, thread_scratch(kernels.scratch_floats(padded)));
  });
}

}  // namespace

void two_pass_backward(const Kernels& kernels, const BackwardArgs& args) {
  const core::Problem problem = core::make_problem(args);
  const auto bytes_of = [&](const core::Sequence& sequence) {
    return BackwardWave::bytes_of(kernels, problem, sequence);
  };
  for (const HeadRange& heads : head_waves(kernels, problem, bytes_of)) {
    BackwardWave wave(kernels, args, problem, heads);
    run_query_pass(kernels, wave);
    run_key_pass(kernels, wave);
  }
}

}  // namespace parallax::cpu
