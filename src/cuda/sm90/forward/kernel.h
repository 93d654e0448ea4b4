// What the host passes to the Hopper forward kernel.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/call.h"
#include "cuda/sm90/schedule.h"

namespace parallax::cuda::sm90 {

/// Tensors as the copy engine sees them, [D, tokens, heads, batch]: boxes of 64 columns by 8 rows
/// of q and r, and by a whole step of keys of k and v.
struct ForwardMaps {
  CUtensorMap q, r, k, v;
};

struct ForwardParams {
  ForwardCall call;
  float scale_log2;  // softmax_scale times log2 e
  TileSchedule schedule;
  TileWorkspace* workspace;
  /// Tiles with a NaN or an infinity among their results, once for each warp that found one.
  uint32_t* flagged_tiles;
};

}  // namespace parallax::cuda::sm90
