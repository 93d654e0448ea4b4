// What a thread does with the scores of a step: weights, and the gradients of s and t as operands
// of the next products. Names as in row_constants.cuh.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cuda/device/ptx/registers.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/sm90/backward/row_constants.cuh"
#include "cuda/sm90/backward/steps.cuh"

namespace parallax::cuda::sm90 {

/// This thread's upper row among the 64 of an accumulator; the other one is 8 below.
__device__ __forceinline__ int fragment_row() {
  return static_cast<int>(threadIdx.x) % 128 / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
}

/// One constant of the queries: of the columns in the pass over keys, of the rows in the other.
template <class Pass, RowConstant kWhich>
class Constants {
 public:
  explicit __device__ __forceinline__ Constants(uint32_t constants)
      : address_(constants + kWhich * kBackwardRows * 4) {
    if constexpr (Pass::kKeys) {
      address_ += threadIdx.x % 4 * 8;
    } else {
      rows_[0] = ptx::load_shared_float(address_ + fragment_row() * 4);
      rows_[1] = ptx::load_shared_float(address_ + fragment_row() * 4 + 32);
    }
  }

  /// For numbers 4 b to 4 b + 3 of an accumulator.
  __device__ __forceinline__ float4 block(int b) const {
    if constexpr (Pass::kKeys) {
      const float2 columns = ptx::load_shared_float2(address_ + b * 32);
      return {columns.x, columns.y, columns.x, columns.y};
    } else {
      return {rows_[0], rows_[0], rows_[1], rows_[1]};
    }
  }

 private:
  uint32_t address_;
  float rows_[2];  // of the pass over queries
};

/// Which of a thread's numbers are of pairs that see each other.
template <bool kMasked>
struct VisibleColumns {
  RowSpan spans[2];  // of the two rows, counted from this thread's first column

  __device__ __forceinline__ bool at(int b, int i) const {
    if constexpr (!kMasked) return true;
    const RowSpan& span = spans[i / 2];
    return 8 * b + i % 2 >= span.begin && 8 * b + i % 2 < span.end;
  }
};

__device__ __forceinline__ float component(const float4& values, int i) {
  return i == 0 ? values.x : (i == 1 ? values.y : (i == 2 ? values.z : values.w));
}

/// p2, as pairs of float16.
template <class Pass, class Visible>
__device__ __forceinline__ void score_weights(const float (&scores)[32], uint32_t constants,
                                              const Visible& visible, float scale_log2,
                                              uint32_t (&weights)[16]) {
  const Constants<Pass, kLse2> lse2(constants);
#pragma unroll
  for (int b = 0; b < kBackwardRows / 8; ++b) {
    const float4 subtracted = lse2.block(b);
    float p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[i] = ptx::exp2_approximate(fmaf(scores[4 * b + i], scale_log2, -component(subtracted, i)));
      if (!visible.at(b, i)) p[i] = 0.0f;
    }
    weights[2 * b] = ptx::pack_pair<half>(p[0], p[1]);
    weights[2 * b + 1] = ptx::pack_pair<half>(p[2], p[3]);
  }
}

/// a as pairs of float16, and p2 a as an operand.
struct SlopePairs {
  uint32_t slopes[16], value_weights[16];
};

template <class Pass, class Visible>
__device__ __forceinline__ void slopes_of(const float (&t)[32], const uint32_t (&weights)[16],
                                          uint32_t constants, const Visible& visible, float scale,
                                          SlopePairs& pairs) {
  using Element = typename Pass::Element;
  const Constants<Pass, kSlope> slope(constants);
#pragma unroll
  for (int b = 0; b < kBackwardRows / 8; ++b) {
    const float4 of_query = slope.block(b);
#pragma unroll
    for (int half_of_b = 0; half_of_b < 2; ++half_of_b) {
      const int pair = 2 * b + half_of_b, i = 2 * half_of_b;
      const float2 p = ptx::unpack_pair<half>(weights[pair]);
      const float a0 = fmaf(-scale, t[4 * b + i], component(of_query, i));
      const float a1 = fmaf(-scale, t[4 * b + i + 1], component(of_query, i + 1));
      pairs.slopes[pair] = ptx::pack_pair<half>(a0, a1);
      pairs.value_weights[pair] = ptx::pack_pair<Element>(visible.at(b, i) ? p.x * a0 : 0.0f,
                                                          visible.at(b, i + 1) ? p.y * a1 : 0.0f);
    }
  }
}

struct PackedSlopes {
  const uint32_t (&pairs)[16];
  __device__ __forceinline__ float2 at(int b, int half_of_b) const {
    return ptx::unpack_pair<half>(pairs[2 * b + half_of_b]);
  }
};
struct PlainSlopes {
  const float (&a)[32];
  __device__ __forceinline__ float2 at(int b, int half_of_b) const {
    return {a[4 * b + 2 * half_of_b], a[4 * b + 2 * half_of_b + 1]};
  }
};

/// ds and dt, as operands.
struct GradientPairs {
  uint32_t d_scores[16], d_t[16];
};

template <class Pass, class Visible, class Slopes>
__device__ __forceinline__ void score_gradients(const float (&g)[32], const uint32_t (&weights)[16],
                                                uint32_t constants, const Visible& visible,
                                                const Slopes& slopes, GradientPairs& pairs) {
  using Element = typename Pass::Element;
  const Constants<Pass, kGradientMean> mean(constants);
  const Constants<Pass, kOffset> offset(constants);
#pragma unroll
  for (int b = 0; b < kBackwardRows / 8; ++b) {
    const float4 means = mean.block(b), offsets = offset.block(b);
#pragma unroll
    for (int half_of_b = 0; half_of_b < 2; ++half_of_b) {
      const int pair = 2 * b + half_of_b, i = 2 * half_of_b;
      const float2 p = ptx::unpack_pair<half>(weights[pair]), a = slopes.at(b, half_of_b);
      const float g0 = g[4 * b + i] - component(means, i);
      const float g1 = g[4 * b + i + 1] - component(means, i + 1);
      const bool sees0 = visible.at(b, i), sees1 = visible.at(b, i + 1);
      pairs.d_scores[pair] =
          ptx::pack_pair<Element>(sees0 ? p.x * fmaf(a.x, g0, component(offsets, i)) : 0.0f,
                                  sees1 ? p.y * fmaf(a.y, g1, component(offsets, i + 1)) : 0.0f);
      pairs.d_t[pair] = ptx::pack_pair<Element>(sees0 ? -p.x * g0 : 0.0f, sees1 ? -p.y * g1 : 0.0f);
    }
  }
}

}  // namespace parallax::cuda::sm90
