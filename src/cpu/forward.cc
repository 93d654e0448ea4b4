// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"
#include "cpu/attention.h"
#include "cpu/scratch.h"

namespace parallax::cpu {

TileState carve_state(float* memory, int64_t padded_dim, int rows) {
  float* const stats = memory + 2 * padded_dim * rows;
  return {.sums = memory,
          .max = stats,
          .weight = stats + rows,
          .t_sum = stats + 2 * rows,
          .centre = stats + 3 * rows,
          .rounded_weight = stats + 4 * rows,
          .rounded_t_sum = stats + 5 * rows};
}

PackedKeys::PackedKeys(const Kernels& kernels, const core::Problem& problem, PackedForm form_of_k,
                       PackedForm form_of_v) {
  if (kernels.pack == nullptr) return;
  const auto source = [&problem](KeyTensor TileInputs::* tensor) -> KeySource {
    return [&problem, tensor](const core::Sequence& sequence, int64_t head_kv) {
      return tile_inputs(problem, sequence, head_kv).*tensor;
    };
  };
  k_ = PackedOperand(kernels, problem, source(&TileInputs::k), form_of_k);
  v_ = PackedOperand(kernels, problem, source(&TileInputs::v), form_of_v);
}

void PackedKeys::add_to(TileInputs& inputs, int64_t sequence_idx, int64_t head_kv) const {
  inputs.packed_k = k_.of(sequence_idx, head_kv);
  inputs.packed_v = v_.of(sequence_idx, head_kv);
}

void forward(const Kernels& kernels, const ForwardArgs& args) {
  const core::Problem problem = core::make_problem(args);
  const TileNumbering tiles = number_row_tiles(problem, kernels.wide_rows);
  const PackedKeys packed(kernels, problem, PackedForm::kTiles, PackedForm::kTransposed);
  const int64_t padded = kernels.padded_dim(problem.head_dim);
  core::parallel_for(tiles.count(), [&](int64_t task) {
    const RowTile tile = row_tile(problem, tiles[task], kernels.wide_rows);
    const core::Sequence& sequence = problem.sequences[static_cast<size_t>(tile.sequence_idx)];
    TileInputs inputs = tile_inputs(problem, sequence, tile.head_kv);
    packed.add_to(inputs, tile.sequence_idx, tile.head_kv);
    float* const scratch =
        thread_scratch(kernels.scratch_floats(padded) + state_floats(padded, kernels.wide_rows));
    const TileState state =
        carve_state(scratch + kernels.scratch_floats(padded), padded, tile.rows);
    kernels.forward(inputs, tile.tile, tile.rows, state, scratch);
    kernels.finish(inputs, tile.tile, tile.rows, state,
                   forward_outputs(problem, args, sequence, tile.head_kv), scratch);
  });
}

}  // namespace parallax::cpu
