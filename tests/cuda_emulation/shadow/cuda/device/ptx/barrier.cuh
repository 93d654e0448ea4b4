// ptx/barrier.cuh, emulated.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda_emulation/device.h"

namespace parallax::cuda::ptx {

inline void barrier_init(uint32_t barrier, int arrivals) {
  emulation::barrier_init(barrier, arrivals);
}
inline void fence_barrier_init() {}
inline void barrier_arrive(uint32_t barrier) { emulation::barrier_arrive(barrier, 0); }
inline void barrier_expect(uint32_t barrier, int bytes) {
  emulation::barrier_arrive(barrier, bytes);
}
inline void barrier_wait(uint32_t barrier, int parity) {
  while (!emulation::barrier_phase_is_over(barrier, parity)) emulation::yield();
}
inline void named_barrier_sync(int id, int threads) {
  emulation::named_barrier(id, threads, emulation::Arrival::kWait);
}
inline void named_barrier_arrive(int id, int threads) {
  emulation::named_barrier(id, threads, emulation::Arrival::kGoOn);
}
inline bool named_barrier_any(int id, int threads, bool condition) {
  return emulation::named_barrier(id, threads, emulation::Arrival::kWait, condition);
}
inline void fence_async_shared() {}

}  // namespace parallax::cuda::ptx
