// Barriers in shared memory (mbarrier), which count arrivals and the bytes of bulk copies, and the
// sixteen named barriers of a block. One instruction per function; addresses are those of shared
// memory (shared.cuh).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace parallax::cuda::ptx {

/// A phase ends with `arrivals` arrivals and no bytes outstanding.
__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

/// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives, and lets the phase wait for that many bytes of bulk copies.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// Returns once the phase of this parity is over. A fresh barrier is in phase 0, so that waiting
/// for parity 1 returns at once.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait%=;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// Named barriers: `threads` of them arrive or wait; whoever only arrives goes on.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// As sync; whether any of the threads has passed true.
__device__ __forceinline__ bool named_barrier_any(int id, int threads, bool condition) {
  int any;
  asm volatile(
      "{\n"
      ".reg .pred mine, anyones;\n"
      "setp.ne.b32 mine, %3, 0;\n"
      "barrier.cta.red.or.pred anyones, %1, %2, mine;\n"
      "selp.b32 %0, 1, 0, anyones;\n"
      "}"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(static_cast<int>(condition))
      : "memory");
  return any != 0;
}

/// Orders this thread's accesses of shared memory before later ones of the copy engine.
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace parallax::cuda::ptx
