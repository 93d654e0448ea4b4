// What one thread does with its scores: weights and running sums. Products that are added to
// something are written as fmaf or __fmul_rn: the repair must round as the kernel did.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/device/ptx/registers.cuh"
#include "cuda/sm90/forward/tiles.cuh"

namespace parallax::cuda::sm90 {

/// Running numbers of a query, the same in its four threads but for the sums, which are those of
/// the thread's own columns until the end.
struct RowState {
  float max = -INFINITY;  // the reference of the weights w = 2^(scale_log2 (s - max))
  float weight = 0.0f;    // sum w
  float t_sum = 0.0f;     // sum w (t - centre)
  float centre = 0.0f;
  // What the last step asks of the sums before it.
  float alpha = 1.0f;    // factor of the old weights
  float shift = 0.0f;    // new centre less the old one
  bool rescale = false;  // of any query of the warp
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

/// The weighted mean of t over this step as the new centre of queries with a new maximum: the first
/// step with a visible key, and later ones that move the mean (docs/math.md, centring).
template <class Config>
__device__ __forceinline__ void renew_centre(const float (&scores)[Config::kKeys / 2], bool renew,
                                             float alpha, RowState& state) {
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
  const float centre = renew ? t_sum / weight : state.centre;
  state.shift = centre - state.centre;
  state.centre = centre;
  state.alpha = renew ? alpha : 1.0f;
  state.t_sum = state.alpha * fmaf(-state.shift, state.weight, state.t_sum);
  state.weight = __fmul_rn(state.alpha, state.weight);
}

/// scores: s becomes w; t stays. `span` is used if kMasked.
template <class Config, bool kMasked>
__device__ __forceinline__ void softmax_weights(float (&scores)[Config::kKeys / 2], KeySpan span,
                                                float scale_log2, RowState& state) {
  if constexpr (kMasked) hide_keys<Config>(scores, span);
  float largest = fmaxf(scores[0], scores[1]);
#pragma unroll
  for (int b = 1; b < Config::kKeys / 8; ++b)
    largest = fmaxf(largest, fmaxf(scores[4 * b], scores[4 * b + 1]));
  largest = quad_max(largest);
  const float old_max = state.max;
  const bool renew = (largest - old_max) * scale_log2 > Config::kLazyLimit;
  if (renew) state.max = largest;
  // Before the first visible key everything is hidden, and 2^-inf = 0.
  const float reference =
      kMasked && state.max == -INFINITY ? 0.0f : __fmul_rn(state.max, scale_log2);
#pragma unroll
  for (int b = 0; b < Config::kKeys / 8; ++b)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      scores[4 * b + i] = ptx::exp2_approximate(fmaf(scores[4 * b + i], scale_log2, -reference));
  state.rescale = __any_sync(~0u, renew);
  if (state.rescale)
    renew_centre<Config>(scores, renew,
                         ptx::exp2_approximate(fmaf(old_max, scale_log2, -reference)), state);
}

/// w and w (t - centre), rounded in pairs, as the A fragment of the value product; the unrounded
/// ones are added to the row's sums.
template <class Config>
__device__ __forceinline__ void pack_weights(const float (&scores)[Config::kKeys / 2],
                                             RowState& state,
                                             uint32_t (&weights)[Config::kKeys / 4]) {
  using Element = typename Config::Element;
  float weight = 0.0f, t_sum = 0.0f;
#pragma unroll
  for (int b = 0; b < Config::kKeys / 8; ++b) {
    const float w0 = scores[4 * b], w1 = scores[4 * b + 1];
    const float u0 = __fmul_rn(w0, scores[4 * b + 2] - state.centre);
    const float u1 = __fmul_rn(w1, scores[4 * b + 3] - state.centre);
    weights[2 * b] = ptx::pack_pair<Element>(w0, w1);
    weights[2 * b + 1] = ptx::pack_pair<Element>(u0, u1);
    weight += w0 + w1;
    t_sum += u0 + u1;
  }
  state.weight += weight;
  state.t_sum += t_sum;
}

/// O1 <- alpha O1, O2 <- alpha (O2 - shift O1).
template <class Config>
__device__ __forceinline__ void rescale_sums(const RowState& state,
                                             float (&sums)[Config::kHeadDim / 2]) {
  if (!state.rescale) return;
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
