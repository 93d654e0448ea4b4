// Registers of a thread: their number, packed conversions, exponentials.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace parallax::cuda::ptx {

/// Gives registers of a warpgroup back, or takes more; every warp of it calls this.
template <int kRegisters>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// The same value, computed where this stands: what a loop derives from it is not kept in registers
/// over the turns of the loop.
__device__ __forceinline__ uint32_t not_kept(uint32_t value) {
  uint32_t copy;
  asm volatile("mov.b32 %0, %1;" : "=r"(copy) : "r"(value));
  return copy;
}

/// Two numbers rounded to nearest even, `low` in the lower half.
template <typename Element>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  uint32_t pair;
  if constexpr (std::is_same_v<Element, __nv_bfloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/// The two numbers of a pair, the lower half first.
template <typename Element>
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>)
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  __half2 halves;
  memcpy(&halves, &pair, sizeof pair);
  return __half22float2(halves);
}

template <typename Element>
__device__ __forceinline__ float pair_sum(uint32_t pair) {
  const float2 numbers = unpack_pair<Element>(pair);
  return numbers.x + numbers.y;
}

/// pair 0 + sum, number by number: a sum of zeros becomes a NaN where a number is not finite.
template <typename Element>
__device__ __forceinline__ uint32_t add_zero_times(uint32_t pair, uint32_t sum) {
  uint32_t result;
  if constexpr (std::is_same_v<Element, __nv_bfloat16>)
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(pair), "r"(0), "r"(sum));
  else
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(pair), "r"(0), "r"(sum));
  return result;
}

/// 1 / x to 1 ulp.
__device__ __forceinline__ float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// log2 x to 2^-22, absolute between 0.5 and 2, relative elsewhere.
__device__ __forceinline__ float log2_approximate(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 2^x to about 2 ulp; 0 for -inf.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace parallax::cuda::ptx
