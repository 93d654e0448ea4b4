// The Parallax attention ops as differentiable C++ functions.
//
// Legend: B sequences, T tokens, N packed tokens, Hq query heads, Hkv key heads, D head size.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <optional>

#include "nn/mixer.h"

namespace parallax::nn {

/// Whether some backend computes attention on this device.
bool has_attention_on(torch::Device device);

struct AttentionSpan {
  std::optional<int64_t> window;            ///< as in parallax::AttentionOptions
  std::optional<torch::Tensor> cu_seqlens;  ///< int32 [B + 1]: boundaries of packed sequences
};

/// Causal attention of whole sequences, out_i = E_p[v] - Cov_p(v, k) r_i (attention.h), with scale
/// D^-1/2 on q.k:
///   q, r [B, T, Hq, D]   k, v [B, T, Hkv, D]   one dtype   ->  out [B, T, Hq, D]
/// or, with cu_seqlens, packed: [N, Hq, D] and [N, Hkv, D].
/// Differentiable once with respect to q, r, k and v: a backward pass with create_graph throws
/// parallax::Error. Where autograd records nothing (no grad mode, or no input requires a gradient)
/// the statistics for the backward pass are neither allocated nor written; out has the same bits.
torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& r, const torch::Tensor& k,
                        const torch::Tensor& v, const AttentionSpan& span);

/// The same for the newest tokens of each sequence against a cache that already holds their keys:
///   q, r [N, Hq, D] packed as step says   k_cache, v_cache [B, capacity, Hkv, D]  ->  [N, Hq, D]
torch::Tensor cached_attention(const torch::Tensor& q, const torch::Tensor& r,
                               const torch::Tensor& k_cache, const torch::Tensor& v_cache,
                               const DecodeStep& step, std::optional<int64_t> window);

}  // namespace parallax::nn
