// Loads and stores of shared memory by address, as barriers and the copy engine take them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace parallax::cuda::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Where the copy engine's swizzle of 128 bytes puts the 16 bytes of a tile that would lie at an
/// address: it exchanges the pieces of 16 bytes of a row by the row's last three bits.
__device__ __forceinline__ uint32_t swizzled(uint32_t address) {
  return address ^ (address >> 3 & 0x70);
}

__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
__device__ __forceinline__ void store_shared(uint32_t address, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

__device__ __forceinline__ float load_shared_float(uint32_t address) {
  float number;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(number) : "r"(address) : "memory");
  return number;
}

__device__ __forceinline__ void store_shared_float(uint32_t address, float number) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(number) : "memory");
}

/// Two numbers, 8-byte aligned.
__device__ __forceinline__ float2 load_shared_float2(uint32_t address) {
  float2 pair;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(pair.x), "=f"(pair.y)
               : "r"(address)
               : "memory");
  return pair;
}

/// Four words, 16-byte aligned.
__device__ __forceinline__ int4 load_shared_int4(uint32_t address) {
  int4 words;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address)
               : "memory");
  return words;
}
__device__ __forceinline__ void store_shared_int4(uint32_t address, int4 words) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

}  // namespace parallax::cuda::ptx
