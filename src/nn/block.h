// One decoder layer: token mixer and SwiGLU, each on a normalised input and added to the stream.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <memory>

#include "nn/mixer.h"
#include "nn/mixers/registry.h"
#include "nn/mlp.h"
#include "nn/rms_norm.h"

namespace parallax::nn {

/// x += mixer(norm(x)); x += mlp(norm(x)).
class BlockImpl : public torch::nn::Module {
 public:
  explicit BlockImpl(const MixerOptions& options);

  /// x and cu_seqlens as in TokenMixer::forward.
  torch::Tensor forward(const torch::Tensor& x, const RotaryTables& rope,
                        const std::optional<torch::Tensor>& cu_seqlens);
  /// For new tokens x [N, C] against the mixer's cache, which it extends.
  torch::Tensor decode(const torch::Tensor& x_NC, const RotaryTables& rope, const DecodeStep& step,
                       MixerCache& cache);
  const TokenMixer& mixer() const { return *mixer_; }

 private:
  torch::Tensor add_mlp(const torch::Tensor& x);

  RmsNorm input_layernorm_{nullptr}, post_attention_layernorm_{nullptr};
  std::shared_ptr<TokenMixer> mixer_;
  Mlp mlp_{nullptr};
};
TORCH_MODULE(Block);

/// block(x, rope, cu_seqlens), keeping only x: the backward pass computes the layer a second time.
/// The same bits as without, gradients included, whatever autocast was set to in the forward pass.
torch::Tensor checkpointed(const Block& block, const torch::Tensor& x, const RotaryTables& rope,
                           const std::optional<torch::Tensor>& cu_seqlens);

}  // namespace parallax::nn
