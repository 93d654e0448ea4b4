// Warpgroup matrix products (wgmma): a warpgroup computes C[64][N] (+)= A[64][16] B[16][N] in fp32,
// asynchronously. The shapes are written by cmake/wgmma.cmake into wgmma_shapes.cuh.
//
// Of C, thread x of the warpgroup (warp w = x / 32, lane = x % 32) holds N / 2 numbers: c[4 b] and
// c[4 b + 1] are row 16 w + lane / 4, columns 8 b + lane % 4 * 2 and the next; c[4 b + 2] and
// c[4 b + 3] are the same columns of the row 8 further down.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "wgmma_shapes.cuh"

namespace parallax::cuda::ptx {

/// What follows uses registers and shared memory as they are now.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// Closes the group of the products issued since the last commit.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Returns when at most kGroups of the newest groups are unfinished.
template <int kGroups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

/// Keeps the compiler from moving accesses of C across this point: it does not know that a product
/// in flight writes them.
template <int kSize>
__device__ __forceinline__ void pin(float (&c)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

/// Describes an operand in shared memory with the 128-byte swizzle: rows of 128 bytes (64 numbers),
/// 8 rows to an atom of 1024 bytes. Address and offsets are in bytes, multiples of 16.
///   K along the rows: `stride` from 8 rows to the next; `leading` is not used.
///   K across them:    `leading` from 64 columns to the next, `stride` from 8 of K to the next.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t leading, uint32_t stride) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32;
}
/// The operand that many bytes further.
__device__ __forceinline__ uint64_t advance(uint64_t operand, int bytes) {
  return operand + static_cast<uint64_t>(bytes >> 4);
}

}  // namespace parallax::cuda::ptx
