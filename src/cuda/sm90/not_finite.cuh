// NaNs and infinities among 16-bit numbers. A hidden key or query has weight 0, but 0 times a NaN
// is a NaN: the kernels flag tiles with such a result, and a second launch computes these again
// with the numbers that are not finite replaced by 0.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/device/ptx/barrier.cuh"
#include "cuda/device/ptx/shared.cuh"

namespace parallax::cuda::sm90 {

/// All ones where the lower or the upper of two numbers is not finite: its exponent is all ones.
template <typename Element>
__device__ __forceinline__ uint32_t not_finite_mask(uint32_t pair) {
  constexpr uint32_t kExponent = std::is_same_v<Element, __nv_bfloat16> ? 0x7f80 : 0x7c00;
  const uint32_t low = (pair & kExponent) == kExponent ? 0xffffu : 0u;
  const uint32_t high = (pair >> 16 & kExponent) == kExponent ? 0xffff0000u : 0u;
  return low | high;
}

/// Clears them in `bytes` of shared memory. All of the block's threads but the first warpgroup call
/// this; `barrier` is a named one.
template <typename Element>
__device__ __forceinline__ void clear_not_finite(uint32_t address, int bytes, int barrier) {
  constexpr int kWarpgroup = 128;
  const int num_threads = static_cast<int>(blockDim.x) - kWarpgroup;
  for (int word = static_cast<int>(threadIdx.x) - kWarpgroup; word < bytes / 4;
       word += num_threads) {
    const uint32_t pair = ptx::load_shared(address + word * 4);
    const uint32_t mask = not_finite_mask<Element>(pair);
    if (mask != 0) ptx::store_shared(address + word * 4, pair & ~mask);
  }
  ptx::fence_async_shared();
  ptx::named_barrier_sync(barrier, num_threads);
}

}  // namespace parallax::cuda::sm90
