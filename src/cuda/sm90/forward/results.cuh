// From the sums of a query to its results in memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/forward/softmax.cuh"
#include "cuda/sm90/write_row.cuh"

namespace parallax::cuda::sm90 {

/// Where a query's results go, and where its keys begin; token is negative for a row beyond the
/// last query.
struct ResultRow {
  int tile, token, head, batch;
  int key_row;
};

template <class Config>
__device__ __forceinline__ void* row_address(const Operand<void>& operand, const ResultRow& row) {
  return static_cast<typename Config::Element*>(operand.data) + row.batch * operand.batch_stride +
         row.token * operand.token_stride + row.head * operand.head_stride;
}

__device__ __forceinline__ WeightSums quad_sums(const WeightSums& sums) {
  return {.weight = quad_sum(sums.weight), .t = quad_sum(sums.t)};
}

/// Writes what the query's sums give: out, and the outputs that are kept for training. Returns, for
/// the whole warp, whether a result is a NaN or infinite. `visible` tells a query without keys, 0
/// and -inf, from one whose scores are all -inf, whose weight is 0 too: 0 / 0 is NaN.
template <class Config>
__device__ __forceinline__ bool write_row(const ForwardParams& params, const ResultRow& row,
                                          KeySpan visible, const RowState& state,
                                          const float (&sums)[Config::kHeadDim / 2]) {
  using Element = typename Config::Element;
  constexpr float kLn2 = 0.69314718f;
  const WeightSums sum_of_row = quad_sums(state.sums);
  const WeightSums divisor = Config::kRoundedSums ? quad_sums(state.rounded_sums) : sum_of_row;
  const float weight = sum_of_row.weight;
  const bool empty = visible.begin >= visible.end;
  const float inverse = empty ? 0.0f : ptx::reciprocal_approximate(divisor.weight);
  const float factor = fmaf(inverse, __fmul_rn(divisor.t, inverse), inverse);
  const bool exists = row.token >= 0;
  uint32_t not_finite = 0;  // pairs of zeros, and NaNs if a result is not finite
  write_row_words<Config::kHeadDim>(row_address<Config>(params.call.out, row), exists, [&](int x) {
    const float* const sum = sums + 4 * x;
    const uint32_t pair =
        ptx::pack_pair<Element>(fmaf(sum[0], factor, -__fmul_rn(sum[2], inverse)),
                                fmaf(sum[1], factor, -__fmul_rn(sum[3], inverse)));
    not_finite = ptx::add_zero_times<Element>(pair, not_finite);
    return pair;
  });
  if (params.call.out_softmax.data != nullptr)
    write_row_words<Config::kHeadDim>(
        row_address<Config>(params.call.out_softmax, row), exists, [&](int x) {
          return ptx::pack_pair<Element>(__fmul_rn(sums[4 * x], inverse),
                                         __fmul_rn(sums[4 * x + 1], inverse));
        });
  const auto write = [&](const Statistic<float>& statistic, float value) {
    if (!exists || threadIdx.x % 4 != 0 || statistic.data == nullptr) return;
    statistic.data[row.batch * statistic.batch_stride + row.token * statistic.token_stride +
                   row.head * statistic.head_stride] = value;
  };
  const float log2_sum = state.reference + ptx::log2_approximate(weight);
  write(params.call.lse, empty ? -INFINITY : (weight == 0.0f ? NAN : log2_sum * kLn2));
  const float t_offset = __fmul_rn(sum_of_row.t, ptx::reciprocal_approximate(weight));
  write(params.call.t_mean, empty ? 0.0f : state.centre + t_offset);
  return __any_sync(~0u, exists && (not_finite & 0x7fff7fff) != 0);
}

}  // namespace parallax::cuda::sm90
