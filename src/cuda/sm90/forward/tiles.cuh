// From a tile of queries to the steps of keys that it needs.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/forward/kernel.h"
#include "cuda/sm90/tile.cuh"

namespace parallax::cuda::sm90 {

/// The keys that one query of the tile's sequence sees.
__host__ __device__ inline KeySpan visible_keys(const ForwardParams& params, const Tile& tile,
                                                int query) {
  return visible_keys(params.call.attention, sequence_of(tile), query);
}

/// The steps of a tile, the newest first: step s has the kKeys keys from end - (s + 1) kKeys on.
/// The last one may begin before key 0. There is at least one, so that there is a result to write.
struct TileSteps {
  int end, count;
};

template <int kQueries, int kKeys>
__host__ __device__ inline TileSteps tile_steps(const ForwardParams& params, const Tile& tile) {
  const int begin = visible_keys(params, tile, tile.first_row).begin;
  const int last_query = min(tile.first_row + kQueries, tile.num_queries) - 1;
  const int end = visible_keys(params, tile, last_query).end;
  return {end, max((end - begin + kKeys - 1) / kKeys, 1)};
}

}  // namespace parallax::cuda::sm90
