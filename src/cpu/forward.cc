// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"
#include "cpu/attention.h"
#include "cpu/packed_operand.h"
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

void forward(const Kernels& kernels, const ForwardArgs& args) {
  const core::Problem problem = core::make_problem(args);
  const TileNumbering tiles = number_row_tiles(problem, kernels.wide_rows);
  const int64_t padded = kernels.padded_dim(problem.head_dim);
  const auto bytes_of = [&](const core::Sequence& sequence) {
    return PackedKeys::bytes_of(kernels, problem, sequence, kForwardForms);
  };
  for (const HeadRange& heads : head_waves(kernels, problem, bytes_of)) {
    const PackedKeys packed(kernels, problem, heads, kForwardForms);
    const int64_t first_tile = tiles.first_of(heads.first);
    core::parallel_for(tiles.first_of(heads.end) - first_tile, [&](int64_t task) {
      const RowTile tile = row_tile(problem, tiles[first_tile + task], kernels.wide_rows);
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
}

}  // namespace parallax::cpu
