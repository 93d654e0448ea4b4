// What the host passes to the Hopper backward kernels.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/call.h"
#include "cuda/sm90/schedule.h"

namespace parallax::cuda::sm90 {

/// Tensors as the copy engine sees them, [D, tokens, heads, batch]: boxes of 64 columns by 64 rows.
struct BackwardMaps {
  CUtensorMap q, r, d_out, k, v;
};

/// One pass of a call.
struct PassParams {
  BackwardCall call;
  float scale_log2;  // softmax_scale times log2 e
  TileSchedule schedule;
  TileWorkspace* workspace;
  /// Tiles with a NaN or an infinity among their results, once for each warp that found one.
  uint32_t* flagged_tiles;
  /// Of each query, for groups of 64: [head][group][4][64] (row_constants.cuh).
  float* constants;
  int64_t constants_per_head;  // groups
};

}  // namespace parallax::cuda::sm90
