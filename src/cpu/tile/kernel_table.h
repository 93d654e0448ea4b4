// The table of one instruction set's kernels. The including unit sets PLX_VECTOR_BYTES.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/backward_tile.h"
#include "cpu/tile/few_rows.h"
#include "cpu/tile/norm_rope.h"
#include "cpu/tile/swiglu.h"

namespace parallax::cpu {
namespace {

/// Parts of kWideRows rows in a wide tile: they share each tile of keys while it is near.
constexpr int kWideParts = 4;

void forward(const TileInputs& inputs, const QueryTile& tile, int rows, const TileState& state,
             float* scratch) {
  if (rows == kNarrowRows)
    narrow_forward_tiles({.inputs = &inputs, .states = &state, .count = 1}, tile, scratch);
  else
    forward_tile<kWideRows, kWideParts>(inputs, tile, state, scratch);
}

void merge(const TileState& state, const TileState& other, int head_dim, int rows) {
  if (rows == kNarrowRows) return merge_tile<kNarrowRows>(state, other, head_dim);
  const int padded = padded_dim(head_dim);
  for (int idx = 0; idx < kWideParts; ++idx)
    merge_tile<kWideRows>(state_part<kWideRows>(state, idx, padded),
                          state_part<kWideRows>(other, idx, padded), head_dim);
}

void finish(const TileInputs& inputs, const QueryTile& tile, int rows, const TileState& state,
            const ForwardOutputs& outputs, float* scratch) {
  if (rows == kNarrowRows) return finish_tile<kNarrowRows>(inputs, tile, state, outputs, scratch);
  const int padded = padded_dim(inputs.head_dim);
  for (int idx = 0; idx * kWideRows < tile.num_rows; ++idx)
    finish_tile<kWideRows>(inputs, tile_part<kWideRows>(inputs, tile, idx),
                           state_part<kWideRows>(state, idx, padded), outputs, scratch);
}

void exponential_array(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = exponential<4>(splat<4>(x[i]))[0];
}

constexpr RowKernels kRowKernels = {.norm_rope = norm_rope,
                                    .norm_rope_backward = norm_rope_backward,
                                    .swiglu = swiglu,
                                    .swiglu_backward = swiglu_backward};

constexpr Kernels make_kernels(const char* isa) {
  return {.isa = isa,
          .wide_rows = kWideParts * kWideRows,
          .key_tile = kKeyTile,
          .fused_rows = kFusedRows,
          .padding = kPadding,
          .scratch_per_dim = kFusedScratch,
          .scratch_fixed = 5 * 64 * 64,
          .pack = nullptr,
          .wave_bytes = 0,
          .wave_tiles = 0,
          .forward = forward,
          .narrow_forward = narrow_forward_tiles,
          .merge = merge,
          .finish = finish,
          .fused_backward = fused_backward_tile,
          .backward_query = nullptr,
          .backward_key = nullptr,
          .rows = kRowKernels,
          .exponential = exponential_array};
}

}  // namespace
}  // namespace parallax::cpu
