// What one thread does with its scores: weights and running sums. Products that are added to
// something are written as fmaf or __fmul_rn: the repair must round as the kernel did.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/device/ptx/registers.cuh"
#include "cuda/sm90/forward/tiles.cuh"

namespace parallax::cuda::sm90 {

/// Over the keys so far: of a thread's own columns until the end.
struct WeightSums {
  float weight = 0.0f;  // sum w
  float t = 0.0f;       // sum w (t - centre)

  __device__ __forceinline__ void rescale(float alpha, float shift) {
    t = __fmul_rn(alpha, fmaf(-shift, weight, t));
    weight = __fmul_rn(alpha, weight);
  }
};

/// Running numbers of a query, the same in its four threads but for the sums.
struct RowState {
  float max = -INFINITY;   // of the scores, up to `limit`: weights are w = 2^(scale_log2 (s - max))
  float reference = 0.0f;  // scale_log2 max; 0 before the first visible key
  float limit = -INFINITY;  // a score beyond it becomes the maximum
  float centre = 0.0f;
  WeightSums sums;
  WeightSums rounded_sums;  // of the weights as the products see them, if Config::kRoundedSums
  // Of the last renewal, for the sums before it.
  float alpha = 1.0f;  // factor of the old weights
  float shift = 0.0f;  // new centre less the old one
};

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

/// Hidden keys get s = -inf and t = 0; what their numbers hold does not matter.
template <class Config>
__device__ __forceinline__ void hide_keys(float (&scores)[Config::kKeys / 2], KeySpan span) {
#pragma unroll
  for (int b = 0; b < Config::kKeys / 8; ++b)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool visible = 8 * b + i >= span.begin && 8 * b + i < span.end;
      if (!visible) {
        scores[4 * b + i] = -INFINITY;
        scores[4 * b + 2 + i] = 0.0f;
      }
    }
}

/// The largest of a thread's scores. Four chains: one would wait for itself.
template <class Config>
__device__ __forceinline__ float largest_score(const float (&scores)[Config::kKeys / 2]) {
  float largest[4] = {scores[0], scores[1], scores[4], scores[5]};
#pragma unroll
  for (int b = 2; b < Config::kKeys / 8; ++b)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float& chain = largest[b % 2 * 2 + i];
      chain = fmaxf(chain, scores[4 * b + i]);
    }
  return fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3]));
}

/// Takes a maximum beyond the limit over, with the limit that follows from it. Returns whether the
/// query has one.
template <class Config>
__device__ __forceinline__ bool renew_max(float thread_largest, float scale_log2, RowState& state) {
  const float largest = quad_max(thread_largest);
  state.alpha = 1.0f;
  if (!(largest > state.limit)) return false;
  state.reference = __fmul_rn(largest, scale_log2);
  state.alpha = ptx::exp2_approximate(fmaf(state.max, scale_log2, -state.reference));
  state.limit = largest + Config::kLazyLimit / scale_log2;
  state.max = largest;
  return true;
}

/// The weighted mean of t over this step as the new centre of queries with a new maximum: the first
/// step with a visible key, and later ones that move the mean (docs/math.md, centring).
template <class Config>
__device__ __forceinline__ void renew_centre(const float (&scores)[Config::kKeys / 2], bool renew,
                                             RowState& state) {
  float weight = 0.0f, t_sum = 0.0f;
#pragma unroll
  for (int b = 0; b < Config::kKeys / 8; ++b)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      weight += scores[4 * b + i];
      t_sum = fmaf(scores[4 * b + i], scores[4 * b + 2 + i], t_sum);
    }
  weight = quad_sum(weight);
  t_sum = quad_sum(t_sum);
  const float centre = renew ? __fmul_rn(t_sum, ptx::reciprocal_approximate(weight)) : state.centre;
  state.shift = centre - state.centre;
  state.centre = centre;
  state.sums.rescale(state.alpha, state.shift);
  state.rounded_sums.rescale(state.alpha, state.shift);
}

/// scores: s becomes w; t stays. kRenew: a thread of the warp has a score beyond its limit.
template <class Config, bool kRenew>
__device__ __forceinline__ void softmax_weights(float (&scores)[Config::kKeys / 2], float largest,
                                                float scale_log2, RowState& state) {
  bool renew = false;
  if constexpr (kRenew) renew = renew_max<Config>(largest, scale_log2, state);
#pragma unroll
  for (int b = 0; b < Config::kKeys / 8; ++b)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      scores[4 * b + i] =
          ptx::exp2_approximate(fmaf(scores[4 * b + i], scale_log2, -state.reference));
  if constexpr (kRenew) renew_centre<Config>(scores, renew, state);
}

/// w and w (t - centre), rounded in pairs, as the A fragment of the value product; the unrounded
/// ones are added to the row's sums.
template <class Config>
__device__ __forceinline__ void pack_weights(const float (&scores)[Config::kKeys / 2],
                                             RowState& state,
                                             uint32_t (&weights)[Config::kKeys / 4]) {
  using Element = typename Config::Element;
  WeightSums sums, rounded;
#pragma unroll
  for (int b = 0; b < Config::kKeys / 8; ++b) {
    const float w0 = scores[4 * b], w1 = scores[4 * b + 1];
    const float u0 = __fmul_rn(w0, scores[4 * b + 2] - state.centre);
    const float u1 = __fmul_rn(w1, scores[4 * b + 3] - state.centre);
    weights[2 * b] = ptx::pack_pair<Element>(w0, w1);
    weights[2 * b + 1] = ptx::pack_pair<Element>(u0, u1);
    sums.weight += w0 + w1;
    sums.t += u0 + u1;
    if constexpr (Config::kRoundedSums) {
      rounded.weight += ptx::pair_sum<Element>(weights[2 * b]);
      rounded.t += ptx::pair_sum<Element>(weights[2 * b + 1]);
    }
  }
  state.sums.weight += sums.weight;
  state.sums.t += sums.t;
  state.rounded_sums.weight += rounded.weight;
  state.rounded_sums.t += rounded.t;
}

/// O1 <- alpha O1, O2 <- alpha (O2 - shift O1).
template <class Config>
__device__ __forceinline__ void rescale_sums(const RowState& state,
                                             float (&sums)[Config::kHeadDim / 2]) {
#pragma unroll
  for (int b = 0; b < Config::kHeadDim / 8; ++b)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float& o1 = sums[4 * b + i];
      float& o2 = sums[4 * b + 2 + i];
      o2 = state.alpha * fmaf(-state.shift, o1, o2);
      o1 *= state.alpha;
    }
}

}  // namespace parallax::cuda::sm90
