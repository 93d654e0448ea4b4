// Rows of any dtype as fp32 vectors with the head dimension in the lanes, straight from memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/rows.h"

namespace parallax::cpu {
namespace {

/// kVectorFloats numbers of a row, as floats.
template <DType kType>
PLX_INLINE Floats<kVectorFloats> load_numbers(const void* row, int64_t idx) {
  constexpr int kWidth = kVectorFloats;
  if constexpr (kType == DType::kFloat32) {
    return load<Floats<kWidth>>(static_cast<const float*>(row) + idx);
  } else {
    const auto* const source = static_cast<const uint16_t*>(row) + idx;
    typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));
    if constexpr (kType == DType::kBFloat16) {
      using U = typename VectorTypes<kWidth>::Unsigned;
      return reinterpret_cast<Floats<kWidth>>(__builtin_convertvector(load<Halves>(source), U)
                                              << 16);
    } else {
#if PLX_VECTOR_BYTES == 64
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
#elif PLX_VECTOR_BYTES == 32
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
#else
      Floats<kWidth> value;
      for (int lane = 0; lane < kWidth; ++lane) value[lane] = from_float16(source[lane]);
      return value;
#endif
    }
  }
}

/// Numbers of a row that are loaded together. bfloat16 numbers come as the even ones, then the odd
/// ones, which costs an instruction per vector less than their order would.
constexpr int kPairFloats = 2 * kVectorFloats;

template <DType kType>
PLX_INLINE void load_pair(const void* row, int64_t idx, Floats<kVectorFloats>& first,
                          Floats<kVectorFloats>& second) {
  if constexpr (kType == DType::kBFloat16) {
    using U = typename VectorTypes<kVectorFloats>::Unsigned;
    const U words = load<U>(static_cast<const uint16_t*>(row) + idx);
    first = reinterpret_cast<Floats<kVectorFloats>>(words << 16);
    second = reinterpret_cast<Floats<kVectorFloats>>(words & 0xffff0000u);
  } else {
    first = load_numbers<kType>(row, idx);
    second = load_numbers<kType>(row, idx + kVectorFloats);
  }
}

/// Where number d of a row of head_dim numbers lies once it is loaded by pairs: what is left of a
/// pair at the end is loaded in order.
template <DType kType>
PLX_INLINE int loaded_place(int d, int head_dim) {
  if (kType != DType::kBFloat16 || d >= head_dim / kPairFloats * kPairFloats) return d;
  const int first = d / kPairFloats * kPairFloats, idx = d - first;
  return first + idx / 2 + idx % 2 * kVectorFloats;
}

/// rows[row][loaded_place(d)] = rows[row][d], in place.
template <DType kType>
static void arrange_rows(float* rows, int num_rows, int head_dim) {
  float row_copy[kMaxHeadDim];
  for (int row = 0; row < num_rows; ++row) {
    float* const numbers = rows + row * head_dim;
    std::memcpy(row_copy, numbers, static_cast<size_t>(head_dim) * sizeof(float));
    for (int d = 0; d < head_dim; ++d) numbers[loaded_place<kType>(d, head_dim)] = row_copy[d];
  }
}

/// The sums of the lanes of kVectorFloats vectors, in their order: neighbours are added, and the
/// sums of two vectors become one.
PLX_INLINE Floats<kVectorFloats> sums_of_lanes(Floats<kVectorFloats>* vectors) {
  using F = Floats<kVectorFloats>;
  using I = Ints<kVectorFloats>;
  const I even = iota<kVectorFloats>() * 2, odd = even + 1;
#pragma GCC unroll 4
  for (int count = kVectorFloats; count > 1; count /= 2)
#pragma GCC unroll 8
    for (int idx = 0; idx < count / 2; ++idx) {
      const F a = vectors[2 * idx], b = vectors[2 * idx + 1];
      vectors[idx] = __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
    }
  return vectors[0];
}

}  // namespace
}  // namespace parallax::cpu
