// The table of one instruction set's kernels. The including unit sets PLX_VECTOR_BYTES.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/backward_tile.h"
#include "cpu/tile/few_rows.h"
#include "cpu/tile/norm_rope.h"
#include "cpu/tile/swiglu.h"

namespace parallax::cpu {
namespace {

void forward(const TileInputs& inputs, const QueryTile& tile, int rows, const TileState& state,
             float* scratch) {
  if (rows == kWideRows)
    forward_tile<kWideRows>(inputs, tile, state, scratch);
  else
    narrow_forward_tiles({.inputs = &inputs, .states = &state, .count = 1}, tile, scratch);
}

void merge(const TileState& state, const TileState& other, int head_dim, int rows) {
  if (rows == kWideRows)
    merge_tile<kWideRows>(state, other, head_dim);
  else
    merge_tile<kNarrowRows>(state, other, head_dim);
}

void finish(const TileInputs& inputs, const QueryTile& tile, int rows, const TileState& state,
            const ForwardOutputs& outputs, float* scratch) {
  if (rows == kWideRows)
    finish_tile<kWideRows>(inputs, tile, state, outputs, scratch);
  else
    finish_tile<kNarrowRows>(inputs, tile, state, outputs, scratch);
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
          .wide_rows = kWideRows,
          .key_tile = kKeyTile,
          .fused_rows = kFusedRows,
          .padding = kPadding,
          .scratch_per_dim = 13 * 64,
          .scratch_fixed = 5 * 64 * 64,
          .pack = nullptr,
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
