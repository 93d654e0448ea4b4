// Forward on Hopper: wgmma products fed by the copy engine.
//
// A block takes a tile of queries of one head after the other. One warp loads q and r, one k and v;
// each consumer warpgroup has 32 queries. Their q and r rows alternate by eights in one product of
// 64 rows, so that a thread holds s and t of the same query and key, and P and P (t - centre) of a
// query are rows 8 apart of the next product's A, which yields both value sums at once:
//   [S; T] = [Q; R] K'      [O1; O2] += [P; P (t - centre)] V
// The exponentials of a step run under the value products of the step before, and the consumers
// take turns to issue products, so that one computes exponentials while the other multiplies. The
// last value product of a tile is issued with the first score product of the next.
// docs/kernels/sm90_forward.md has the schedule, docs/math.md the mathematics (forward, centring).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/forward/config.h"
#include "cuda/sm90/forward/consumer.cuh"
#include "cuda/sm90/forward/loader.cuh"

namespace parallax::cuda::sm90 {

/// kRepair: computes the tiles of params.flagged_tiles again, with hidden values kept out.
template <class Config, bool kRepair>
__global__ void __launch_bounds__(Config::kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardMaps maps,
                   const __grid_constant__ ForwardParams params) {
  if (kRepair && params.workspace->num_flagged == 0) return;
  alignas(kSwizzleAlignment) extern __shared__ char shared_memory[];
  const SharedTiles<Config> shared(shared_memory);
  if (threadIdx.x == 0) shared.init_barriers();
  __syncthreads();
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / Config::kWarpgroup, 0);
  if (warpgroup == 0) {
    ptx::shrink_registers<Config::kLoaderRegisters>();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp == 0)
      load_keys<Config>(maps, params, shared);
    else if (warp == 1)
      load_queries<Config, kRepair>(maps, params, shared);
  } else {
    ptx::grow_registers<Config::kConsumerRegisters>();
    Consumer<Config, kRepair> consumer(params, shared, warpgroup - 1);
    consumer.run();
  }
}

}  // namespace parallax::cuda::sm90
