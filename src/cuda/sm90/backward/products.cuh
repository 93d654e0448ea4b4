// The products of a backward pass, of 64 rows by 64.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/ptx/registers.cuh"
#include "cuda/device/ptx/wgmma.cuh"
#include "cuda/sm90/backward/config.h"

namespace parallax::cuda::sm90 {

/// Of a step's tile. ptxas would keep the descriptors of large heads too.
template <class Config>
__device__ __forceinline__ uint32_t step_address(uint32_t tile) {
  return Config::kSplit ? ptx::not_kept(tile) : tile;
}

/// c = A B' over D, as one group. `a`, which a loop does not change, is not kept: ptxas would hold
/// a descriptor for each 16 of D in registers.
template <class Config>
__device__ __forceinline__ void issue_dots(float (&c)[32], uint32_t a, uint32_t b) {
  const uint64_t rows = ptx::operand(ptx::not_kept(a), /*leading=*/16, /*stride=*/1024);
  const uint64_t columns = ptx::operand(step_address<Config>(b), /*leading=*/16, /*stride=*/1024);
  ptx::pin(c);
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < Config::kHeadDim / 16; ++k) {
    const int bytes = k / 4 * Config::kChunkBytes + k % 4 * 32;
    ptx::Wgmma<kBackwardRows>::template shared_by_shared<typename Config::Element>(
        c, ptx::advance(rows, bytes), ptx::advance(columns, bytes), k > 0);
  }
  ptx::wgmma_commit();
}

/// sums += weights B, over 64 rows of B, which starts at these sums' columns. The caller commits.
template <class Config>
__device__ __forceinline__ void issue_rows(float (&sums)[Config::kSumColumns / 2],
                                           const uint32_t (&weights)[16], uint32_t b) {
  const uint64_t rows =
      ptx::operand(step_address<Config>(b), /*leading=*/Config::kChunkBytes, /*stride=*/1024);
  ptx::pin(sums);
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kBackwardRows / 16; ++k)
    ptx::Wgmma<Config::kSumColumns>::template registers_by_shared<typename Config::Element>(
        sums, weights + 4 * k, ptx::advance(rows, k * 16 * Config::kRowBytes), true);
}

}  // namespace parallax::cuda::sm90
