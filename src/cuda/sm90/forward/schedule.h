// How a call is cut into tiles, on the host; tiles.cuh is the other side.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cuda/sm90/forward/instance.h"

namespace parallax::cuda::sm90 {

/// Tiles of the call, those without queries included.
int64_t num_tiles(const AttentionCall& call, const ForwardTile& tile);

/// num_tiles() must be less than 2^31.
TileSchedule make_schedule(const AttentionCall& call, const ForwardTile& tile, int64_t l2_bytes);

}  // namespace parallax::cuda::sm90
