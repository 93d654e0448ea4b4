// Backward on Hopper in two passes without atomics: docs/kernels/sm90_backward.md. With the names
// of row_constants.cuh,
//   pass over keys:    S' = K Q'  T' = K R'  G' = V dO'    dK += ds' Q + dt' R    dV += (p a)' dO
//   pass over queries: S  = Q K'  T  = R K'  G  = dO V'    dQ += ds K   dR += dt K
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/backward/consumer.cuh"

namespace parallax::cuda::sm90 {

/// kRepair: computes the tiles of params.flagged_tiles again, with hidden rows kept out.
template <class Pass, bool kRepair>
__global__ void __launch_bounds__(Pass::kThreads, 1)
    backward_kernel(const __grid_constant__ BackwardMaps maps,
                    const __grid_constant__ PassParams params) {
  if (kRepair && params.workspace->num_flagged == 0) return;
  alignas(kSwizzleAlignment) extern __shared__ char shared_memory[];
  const BackwardShared<Pass> shared(shared_memory);
  if (threadIdx.x == 0) shared.init_barriers();
  __syncthreads();
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / Pass::kWarpgroup, 0);
  if (warpgroup == 0) {
    ptx::shrink_registers<Pass::kLoaderRegisters>();
    BackwardLoader<Pass, kRepair> loader(maps, params, shared);
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp == 3) {
      if constexpr (Pass::kKeys) loader.load_constants();
    } else if (threadIdx.x % 32 != 0) {
      return;
    } else if (warp == 0) {
      loader.load_own();
    } else if (warp == 1) {
      loader.template load_steps<true>();
    } else {
      loader.template load_steps<false>();
    }
  } else {
    ptx::grow_registers<Pass::kConsumerRegisters>();
    BackwardConsumer<Pass, kRepair> consumer(params, shared, warpgroup - 1);
    consumer.run();
  }
}

}  // namespace parallax::cuda::sm90
