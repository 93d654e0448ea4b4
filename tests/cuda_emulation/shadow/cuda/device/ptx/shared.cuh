// ptx/shared.cuh, emulated.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>

#include "cuda_emulation/device.h"

namespace parallax::cuda::ptx {

inline uint32_t shared_address(const void* pointer) { return emulation::shared_address(pointer); }

inline uint32_t swizzled(uint32_t address) { return address; }  // device.h: no swizzle

template <typename Words>
Words load_words(uint32_t address) {
  Words words;
  std::memcpy(&words, emulation::shared(address), sizeof words);
  return words;
}
template <typename Words>
void store_words(uint32_t address, Words words) {
  std::memcpy(emulation::shared(address), &words, sizeof words);
}

inline uint32_t load_shared(uint32_t address) { return load_words<uint32_t>(address); }
inline void store_shared(uint32_t address, uint32_t word) { store_words(address, word); }
inline float load_shared_float(uint32_t address) { return load_words<float>(address); }
inline void store_shared_float(uint32_t address, float number) { store_words(address, number); }
inline float2 load_shared_float2(uint32_t address) { return load_words<float2>(address); }
inline int4 load_shared_int4(uint32_t address) { return load_words<int4>(address); }
inline void store_shared_int4(uint32_t address, int4 words) { store_words(address, words); }

}  // namespace parallax::cuda::ptx
