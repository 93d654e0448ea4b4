// Values that are not finite, in tiles that a query sees in part. A hidden key has weight 0, but 0
// times a NaN is a NaN. The kernel does not look for that: it flags tiles with such a result, and a
// second launch computes these again. There every NaN and infinity of V is replaced by 0 before the
// product, which leaves all other bits as they were, and a query gets a NaN in the columns where a
// value that it does see is not finite.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/ptx/barrier.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/sm90/forward/results.cuh"

namespace parallax::cuda::sm90 {

/// The lower and the upper of two 16-bit floats: its exponent is all ones.
template <typename Element>
__device__ __forceinline__ uint32_t not_finite_mask(uint32_t pair) {
  constexpr uint32_t kExponent = std::is_same_v<Element, __nv_bfloat16> ? 0x7f80 : 0x7c00;
  const uint32_t low = (pair & kExponent) == kExponent ? 0xffffu : 0u;
  const uint32_t high = (pair >> 16 & kExponent) == kExponent ? 0xffff0000u : 0u;
  return low | high;
}

/// All consumers, once for each stage of values.
template <class Config>
__device__ __forceinline__ void clear_not_finite(uint32_t values) {
  constexpr int kThreads = Config::kConsumers * Config::kWarpgroup;
  for (int word = static_cast<int>(threadIdx.x) - Config::kWarpgroup; word < Config::kKeyBytes / 4;
       word += kThreads) {
    const uint32_t pair = ptx::load_shared(values + word * 4);
    const uint32_t mask = not_finite_mask<typename Config::Element>(pair);
    if (mask != 0) ptx::store_shared(values + word * 4, pair & ~mask);
  }
  ptx::fence_async_shared();
  ptx::named_barrier_sync(kRepairBarrier, kThreads);
}

/// Puts NaNs where the query sees values that were cleared.
template <class Config>
__device__ __forceinline__ void add_not_finite(const ForwardParams& params, const ResultRow& row,
                                               KeySpan visible,
                                               float (&sums)[Config::kHeadDim / 2]) {
  using Element = typename Config::Element;
  if (row.token < 0) return;
  const Operand<const void>& v = params.call.attention.v;
  for (int key = visible.begin; key < visible.end; ++key) {
    const Element* const value = static_cast<const Element*>(v.data) + row.batch * v.batch_stride +
                                 (row.key_row + key) * v.token_stride +
                                 row.head / params.call.attention.group * v.head_stride;
    const auto* const pairs = reinterpret_cast<const uint32_t*>(value) + threadIdx.x % 4;
#pragma unroll
    for (int b = 0; b < Config::kHeadDim / 8; ++b) {
      const uint32_t mask = not_finite_mask<Element>(pairs[4 * b]);
      if ((mask & 0xffffu) != 0) sums[4 * b] = NAN;
      if (mask >> 16 != 0) sums[4 * b + 1] = NAN;
    }
  }
}

}  // namespace parallax::cuda::sm90
