// Values that are not finite, in tiles that a query sees in part: not_finite.cuh. Replacing them by
// 0 leaves all other bits as they were, and a query gets a NaN in the columns where a value that it
// does see is not finite.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/forward/results.cuh"
#include "cuda/sm90/not_finite.cuh"

namespace parallax::cuda::sm90 {

/// All consumers, once for each stage of values.
template <class Config>
__device__ __forceinline__ void clear_values(uint32_t values) {
  clear_not_finite<typename Config::Element>(values, Config::kKeyBytes, kRepairBarrier);
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
