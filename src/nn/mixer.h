// The contract of a token mixer: the part of a decoder layer that moves information between tokens.
//
// Legend: B sequences, T tokens each, N tokens of all sequences packed, C hidden size.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <optional>

namespace parallax::nn {

/// Rotary tables for the positions at hand: cos and sin, float32 [T or N, D / 2].
struct RotaryTables {
  torch::Tensor cos, sin;
};

/// One cached step: new tokens of B sequences, packed in batch order.
struct DecodeStep {
  torch::Tensor cu_seqlens;     ///< int32 [B + 1]: new tokens of each sequence
  torch::Tensor cache_seqlens;  ///< int32 [B]: valid cache entries after this step
  torch::Tensor batch_N;        ///< int64 [N]: sequence of each token
  torch::Tensor position_N;     ///< int64 [N]: position of each token, from 0
};

/// What a mixer remembers of the tokens it has seen, for B sequences of at most `capacity` tokens.
class MixerCache {
 public:
  virtual ~MixerCache() = default;
  virtual int64_t bytes() const = 0;
};

class TokenMixer : public torch::nn::Module {
 public:
  /// Causal, trainable: x [B, T, C], or sequences packed one after another as x [N, C] with their
  /// boundaries cu_seqlens (int32 [B + 1], from 0 to N) -> the shape of x.
  virtual torch::Tensor forward(const torch::Tensor& x, const RotaryTables& rope,
                                const std::optional<torch::Tensor>& cu_seqlens) = 0;

  virtual std::unique_ptr<MixerCache> make_cache(int64_t batch_size, int64_t capacity,
                                                 torch::TensorOptions options) const = 0;
  /// The same function for new tokens x [N, C] against the cache, which it extends. Inference only.
  virtual torch::Tensor decode(const torch::Tensor& x_NC, const RotaryTables& rope,
                               const DecodeStep& step, MixerCache& cache) = 0;

  /// Forward FLOPs of one sequence of T tokens, projections included.
  virtual double flops(int64_t num_tokens) const = 0;
};

}  // namespace parallax::nn
