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
          .centre = stats + 3 * rows};
}

void forward(const Kernels& kernels, const ForwardArgs& args) {
  const core::Problem problem = core::make_problem(args);
  const TileNumbering tiles = number_row_tiles(problem);
  const int64_t padded = padded_dim(problem);
  core::parallel_for(tiles.count(), [&](int64_t task) {
    const RowTile tile = row_tile(problem, tiles[task]);
    const core::Sequence& sequence = problem.sequences[static_cast<size_t>(tile.sequence_idx)];
    const TileInputs inputs = tile_inputs(problem, sequence, tile.head_kv);
    float* const scratch = thread_scratch(scratch_floats(padded) + state_floats(padded, kWideRows));
    const TileState state = carve_state(scratch + scratch_floats(padded), padded, tile.rows);
    kernels.forward(inputs, tile.tile, tile.rows, state, scratch);
    kernels.finish(inputs, tile.tile, tile.rows, state,
                   forward_outputs(problem, args, sequence, tile.head_kv), scratch);
  });
}

}  // namespace parallax::cpu
