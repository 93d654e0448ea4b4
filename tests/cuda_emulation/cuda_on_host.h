// Included before every unit with device code: what nvcc would supply, for a host compiler.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#define __STORAGE__ extern
#include <cuda_runtime.h>
#include <device_launch_parameters.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_emulation/device.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline
#undef __grid_constant__
#define __grid_constant__
#undef __shared__
#define __shared__
#undef __device__
#define __device__
#undef __host__
#define __host__
#undef __global__
#define __global__

template <typename Number>
Number exchanged(Number value, int source, parallax::emulation::Source kind) {
  static_assert(sizeof value == sizeof(uint32_t));
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = parallax::emulation::exchange(bits, source, kind);
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

inline void __syncthreads() { parallax::emulation::sync_threads(); }
inline void __syncwarp(unsigned /*mask*/ = ~0u) {
  exchanged(0, 0, parallax::emulation::Source::kXor);
}
template <typename Number>
Number __shfl_xor_sync(unsigned /*mask*/, Number value, int lanes) {
  return exchanged(value, lanes, parallax::emulation::Source::kXor);
}
template <typename Number>
Number __shfl_sync(unsigned /*mask*/, Number value, int lane) {
  return exchanged(value, lane, parallax::emulation::Source::kLane);
}
inline bool __any_sync(unsigned mask, bool value) {
  uint32_t any = value;
  for (int lanes = 1; lanes < 32; lanes *= 2) any |= __shfl_xor_sync(mask, any, lanes);
  return any != 0;
}
// The kernels are built without contraction.
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline unsigned atomicAdd(unsigned* target, unsigned value) {
  const unsigned old = *target;
  *target += value;
  return old;
}
inline int min(int a, int b) { return std::min(a, b); }
inline int max(int a, int b) { return std::max(a, b); }
inline int64_t min(int64_t a, int64_t b) { return std::min(a, b); }
inline int64_t max(int64_t a, int64_t b) { return std::max(a, b); }

#define cudaLaunchKernelEx emulated_launch
template <typename... Parameters, typename... Arguments>
cudaError_t emulated_launch(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                            const Arguments&... arguments) {
  parallax::emulation::launch({.blocks_x = config->gridDim.x,
                               .blocks_y = config->gridDim.y,
                               .threads = config->blockDim.x,
                               .shared_bytes = static_cast<unsigned>(config->dynamicSmemBytes)},
                              [&] { kernel(arguments...); });
  return cudaSuccess;
}
