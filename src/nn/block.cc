// Decoder layer.
// SPDX-License-Identifier: Apache-2.0
#include "nn/block.h"

#include "nn/linear.h"

namespace parallax::nn {

using torch::Tensor;

BlockImpl::BlockImpl(const MixerOptions& options) {
  const ModelConfig& config = options.config;
  const auto add_norm = [&](const char* name) {
    return register_module(name, RmsNorm(config.hidden_size, config.rms_norm_eps, options.device));
  };
  input_layernorm_ = add_norm("input_layernorm");
  mixer_ = register_module("self_attn", make_mixer(options));
  post_attention_layernorm_ = add_norm("post_attention_layernorm");
  mlp_ = register_module("mlp", Mlp(config, options.device));
}

Tensor BlockImpl::add_mlp(const Tensor& x) {
  return x + mlp_(post_attention_layernorm_(x, compute_dtype(x)));
}

Tensor BlockImpl::forward(const Tensor& x, const RotaryTables& rope,
                          const std::optional<Tensor>& cu_seqlens) {
  const Tensor normed = input_layernorm_(x, compute_dtype(x));
  return add_mlp(x + mixer_->forward(normed, rope, cu_seqlens));
}

Tensor BlockImpl::decode(const Tensor& x_NC, const RotaryTables& rope, const DecodeStep& step,
                         MixerCache& cache) {
  const Tensor normed = input_layernorm_(x_NC, compute_dtype(x_NC));
  return add_mlp(x_NC + mixer_->decode(normed, rope, step, cache));
}

}  // namespace parallax::nn
