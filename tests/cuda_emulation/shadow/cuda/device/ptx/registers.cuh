// ptx/registers.cuh, emulated.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace parallax::cuda::ptx {

template <int kRegisters>
void shrink_registers() {}
template <int kRegisters>
void grow_registers() {}

inline uint32_t not_kept(uint32_t value) { return value; }

template <typename Element>
uint32_t pack_pair(float low, float high) {
  Element pair[2];
  if constexpr (std::is_same_v<Element, __nv_bfloat16>)
    pair[0] = __float2bfloat16_rn(low), pair[1] = __float2bfloat16_rn(high);
  else
    pair[0] = __float2half_rn(low), pair[1] = __float2half_rn(high);
  uint32_t word;
  std::memcpy(&word, pair, sizeof word);
  return word;
}

template <typename Element>
float2 unpack_pair(uint32_t pair) {
  Element numbers[2];
  std::memcpy(numbers, &pair, sizeof pair);
  return {static_cast<float>(numbers[0]), static_cast<float>(numbers[1])};
}

template <typename Element>
float pair_sum(uint32_t pair) {
  const float2 numbers = unpack_pair<Element>(pair);
  return numbers.x + numbers.y;
}

template <typename Element>
uint32_t add_zero_times(uint32_t pair, uint32_t sum) {
  Element numbers[2], sums[2];
  std::memcpy(numbers, &pair, sizeof pair);
  std::memcpy(sums, &sum, sizeof sum);
  return pack_pair<Element>(
      std::fma(static_cast<float>(numbers[0]), 0.0f, static_cast<float>(sums[0])),
      std::fma(static_cast<float>(numbers[1]), 0.0f, static_cast<float>(sums[1])));
}

inline float reciprocal_approximate(float x) { return 1.0f / x; }
inline float log2_approximate(float x) { return std::log2(x); }
inline float exp2_approximate(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }

}  // namespace parallax::cuda::ptx
