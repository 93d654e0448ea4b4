// SIMD vectors through the compiler's vector extension, so that one source serves every instruction
// set. PLX_VECTOR_BYTES (16, 32 or 64) is set by the including unit. Everything here and in the
// other headers of this folder has internal linkage (see kernels.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

#if PLX_VECTOR_BYTES > 16
#include <immintrin.h>
#endif

#define PLX_INLINE static inline __attribute__((always_inline))

namespace parallax::cpu {
namespace {

constexpr int kVectorFloats = PLX_VECTOR_BYTES / 4;

template <int kWidth>
struct VectorTypes {
  typedef float Float __attribute__((vector_size(4 * kWidth)));
  typedef int32_t Int __attribute__((vector_size(4 * kWidth)));
  typedef uint32_t Unsigned __attribute__((vector_size(4 * kWidth)));
};
template <int kWidth>
using Floats = typename VectorTypes<kWidth>::Float;
template <int kWidth>
using Ints = typename VectorTypes<kWidth>::Int;

constexpr float kInfinity = __builtin_inff();

template <typename Vector, typename Element>
PLX_INLINE Vector load(const Element* source) {
  Vector value;
  std::memcpy(&value, source, sizeof value);
  return value;
}

template <typename Vector, typename Element>
PLX_INLINE void store(Element* target, Vector value) {
  std::memcpy(target, &value, sizeof value);
}

template <int kWidth>
PLX_INLINE Floats<kWidth> splat(float value) {
  return value - Floats<kWidth>{};  // exact for -0 too, so that no instruction remains
}

/// a b + c, fused wherever the instruction set can. Written out for the sums that must round alike
/// in different places (docs/numerics.md, exact cases): a compiler that may contract need not, and
/// GCC 13 does not in loop-carried sums.
PLX_INLINE Floats<kVectorFloats> multiply_add(Floats<kVectorFloats> a, Floats<kVectorFloats> b,
                                              Floats<kVectorFloats> c) {
#if PLX_VECTOR_BYTES == 64
  return _mm512_fmadd_ps(a, b, c);
#elif PLX_VECTOR_BYTES == 32
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

/// 0, 1, 2, ... as integers.
template <int kWidth>
PLX_INLINE Ints<kWidth> iota() {
  Ints<kWidth> value;
  for (int lane = 0; lane < kWidth; ++lane) value[lane] = lane;
  return value;
}

/// combine() over all lanes, by halves.
template <typename Combine>
PLX_INLINE float fold_lanes(Floats<kVectorFloats> value, const Combine& combine) {
#if PLX_VECTOR_BYTES == 64
  const auto eight = combine(__builtin_shufflevector(value, value, 0, 1, 2, 3, 4, 5, 6, 7),
                             __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15));
#elif PLX_VECTOR_BYTES == 32
  const auto eight = value;
#endif
#if PLX_VECTOR_BYTES > 16
  const Floats<4> four = combine(__builtin_shufflevector(eight, eight, 0, 1, 2, 3),
                                 __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
#else
  const Floats<4> four = value;
#endif
  const Floats<4> two = combine(four, __builtin_shuffle(four, Ints<4>{2, 3, 2, 3}));
  return combine(two, __builtin_shuffle(two, Ints<4>{1, 1, 1, 1}))[0];
}

PLX_INLINE float sum_of_lanes(Floats<kVectorFloats> value) {
  return fold_lanes(value, [](auto a, auto b) { return a + b; });
}

PLX_INLINE float max_of_lanes(Floats<kVectorFloats> value) {
  return fold_lanes(value, [](auto a, auto b) { return a > b ? a : b; });
}

template <int kWidth>
PLX_INLINE bool any(Ints<kWidth> mask) {
  int32_t lanes[kWidth];
  store(lanes, mask);
  int32_t found = 0;
  for (int lane = 0; lane < kWidth; ++lane) found |= lanes[lane];
  return found != 0;
}

/// e^x to about 1 ulp for the x near 0 that matter (the relative error grows as |x| 2^-24);
/// exactly 1 at 0; 0 below -126 ln 2, so no subnormals; NaN stays NaN. x must not exceed 127 ln 2,
/// which logits less their maximum never do.
/// x log2(e) = n + f with |f| <= 1/2; 2^f by a polynomial of degree 6 (relative error 2e-9, fitted
/// with the constant term fixed at 1).
template <int kWidth>
PLX_INLINE Floats<kWidth> exponential(Floats<kWidth> x) {
  using F = Floats<kWidth>;
  using U = typename VectorTypes<kWidth>::Unsigned;  // NaN and -inf wrap around here
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const F scaled = x * 1.44269504f;
  const F shifted = scaled + kRound;
  const F f = scaled - (shifted - kRound);
  F y = f * 0x1.41fbbap-13f + 0x1.5f3e54p-10f;
  y = y * f + 0x1.3b2d4cp-7f;
  y = y * f + 0x1.c6aee8p-5f;
  y = y * f + 0x1.ebfbdcp-3f;
  y = y * f + 0x1.62e430p-1f;
  y = y * f + 1.0f;
  const U exponent = (reinterpret_cast<U>(shifted) << 23) + 0x3f800000u;
  y *= reinterpret_cast<F>(exponent);
  return scaled < -126.0f ? F{} : y;
}

}  // namespace
}  // namespace parallax::cpu
