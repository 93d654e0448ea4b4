// The table of the matrix unit's kernels: its own for wide tiles and backward, the vector kernels
// for the narrow tiles of decoding, which wait for memory and not for products.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/kernel_table.h"
#include "cpu/tile/matrix_key_pass.h"
#include "cpu/tile/matrix_pack.h"

namespace parallax::cpu {
namespace {

void matrix_forward(const TileInputs& inputs, const QueryTile& tile, int rows,
                    const TileState& state, float* scratch) {
  if (rows == kMatrixRows)
    matrix_forward_tile(inputs, tile, state, scratch);
  else
    forward(inputs, tile, rows, state, scratch);
}

void matrix_merge(const TileState& state, const TileState& other, int head_dim, int rows) {
  if (rows == kMatrixRows)
    matrix_merge_tile(state, other, head_dim);
  else
    merge(state, other, head_dim, rows);
}

void matrix_finish(const TileInputs& inputs, const QueryTile& tile, int rows,
                   const TileState& state, const ForwardOutputs& outputs, float* scratch) {
  if (rows == kMatrixRows)
    matrix_finish_tile(inputs, tile, state, outputs, scratch);
  else
    finish(inputs, tile, rows, state, outputs, scratch);
}

constexpr Kernels make_matrix_kernels(const char* isa, int64_t wave_bytes, int64_t wave_tiles) {
  return {.isa = isa,
          .wide_rows = kMatrixRows,
          .key_tile = kKeyTile,
          .fused_rows = 0,
          .padding = kTileDepth,
          .scratch_per_dim = 9 * 64,
          .scratch_fixed = 10 * 64 * 64,
          .pack = pack_block,
          .wave_bytes = wave_bytes,
          .wave_tiles = wave_tiles,
          .forward = matrix_forward,
          .narrow_forward = narrow_forward_tiles,
          .merge = matrix_merge,
          .finish = matrix_finish,
          .fused_backward = nullptr,
          .backward_query = matrix_backward_query_tile,
          .backward_key = matrix_backward_key_tile,
          .rows = kRowKernels,
          .exponential = exponential_array};
}

}  // namespace
}  // namespace parallax::cpu
