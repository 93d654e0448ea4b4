// From the sums of a query to its results in memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/forward/softmax.cuh"

namespace parallax::cuda::sm90 {

/// Where a query's results go, and where its keys begin; token is negative for a row beyond the
/// last query.
struct ResultRow {
  int tile, token, head, batch;
  int key_row;
};

/// Word x of lane l of a quad goes to word l of lane x.
__device__ __forceinline__ uint4 transpose_quad(const uint32_t (&words)[4]) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  const auto exchange = [](bool keep_low, uint32_t& low, uint32_t& high, int lanes) {
    const uint32_t received = __shfl_xor_sync(~0u, keep_low ? high : low, lanes);
    (keep_low ? high : low) = received;
  };
  uint32_t a = words[0], b = words[1], c = words[2], d = words[3];
  exchange(!odd, a, b, 1);
  exchange(!odd, c, d, 1);
  exchange(!upper, a, c, 2);
  exchange(!upper, b, d, 2);
  return {a, b, c, d};
}

template <class Config>
__device__ __forceinline__ void* row_address(const Operand<void>& operand, const ResultRow& row) {
  return static_cast<typename Config::Element*>(operand.data) + row.batch * operand.batch_stride +
         row.token * operand.token_stride + row.head * operand.head_stride;
}

/// Writes what the query's sums give: out, and the outputs that are kept for training. Returns, for
/// the whole warp, whether a result is a NaN or infinite.
template <class Config>
__device__ __forceinline__ bool write_row(const ForwardParams& params, const ResultRow& row,
                                          const RowState& state,
                                          const float (&sums)[Config::kHeadDim / 2]) {
  using Element = typename Config::Element;
  constexpr float kLn2 = 0.69314718f;
  const float weight = quad_sum(state.weight);
  const float inverse = weight > 0.0f ? 1.0f / weight : 0.0f;
  const float t_offset = __fmul_rn(quad_sum(state.t_sum), inverse);  // mean of t less the centre
  const bool exists = row.token >= 0;
  const int lane = threadIdx.x % 4;
  auto* const out = static_cast<uint4*>(row_address<Config>(params.call.out, row)) + lane;
  auto* const out_softmax =
      static_cast<uint4*>(row_address<Config>(params.call.out_softmax, row)) + lane;
  float finite = 0.0f;  // a NaN if a result is not
#pragma unroll
  for (int part = 0; part < Config::kHeadDim / 32; ++part) {
    uint32_t words[4], softmax_words[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const float* const sum = sums + 4 * (4 * part + x);
      const float a = __fmul_rn(sum[0], inverse), b = __fmul_rn(sum[1], inverse);
      const float a_out = fmaf(-sum[2], inverse, fmaf(a, t_offset, a));
      const float b_out = fmaf(-sum[3], inverse, fmaf(b, t_offset, b));
      finite = fmaf(a_out, 0.0f, fmaf(b_out, 0.0f, finite));
      words[x] = ptx::pack_pair<Element>(a_out, b_out);
      softmax_words[x] = ptx::pack_pair<Element>(a, b);
    }
    const uint4 packed = transpose_quad(words);
    if (exists) out[part * 4] = packed;
    if (params.call.out_softmax.data != nullptr) {
      const uint4 packed_softmax = transpose_quad(softmax_words);
      if (exists) out_softmax[part * 4] = packed_softmax;
    }
  }
  const auto write = [&](const Statistic<float>& statistic, float value) {
    if (!exists || lane != 0 || statistic.data == nullptr) return;
    statistic.data[row.batch * statistic.batch_stride + row.token * statistic.token_stride +
                   row.head * statistic.head_stride] = value;
  };
  const float reference = __fmul_rn(state.max, params.scale_log2);  // of the weights
  write(params.call.lse, weight > 0.0f ? (reference + log2f(weight)) * kLn2 : -INFINITY);
  write(params.call.t_mean, weight > 0.0f ? state.centre + t_offset : 0.0f);
  return __any_sync(~0u, exists && finite != 0.0f);
}

}  // namespace parallax::cuda::sm90
