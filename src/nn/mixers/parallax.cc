// Parallax attention layer.
// SPDX-License-Identifier: Apache-2.0
#include "nn/mixers/parallax.h"

namespace parallax::nn {

ParallaxMixer::ParallaxMixer(const MixerOptions& options) : SoftmaxMixer(options) {
  const int64_t q_size = config_.num_attention_heads * config_.head_dim;
  r_proj_ = register_module("r_proj", Linear(LinearOptions{.in_features = config_.hidden_size,
                                                           .out_features = q_size,
                                                           .bias = config_.r_proj_bias,
                                                           .device = options.device}));
  if (config_.r_norm)
    r_norm_ =
        register_module("r_norm", RmsNorm(config_.head_dim, config_.rms_norm_eps, options.device));
}

torch::Tensor ParallaxMixer::probe(const torch::Tensor& x, const RotaryTables& rope) {
  return turned_heads(r_proj_, r_norm_, x, config_.r_rope ? &rope : nullptr);
}

double ParallaxMixer::flops(int64_t num_tokens) const {
  // The second score and the second value sum cost what softmax attention's cost.
  return SoftmaxMixer::flops(num_tokens) +
         pair_flops(num_tokens, 4 * static_cast<double>(config_.head_dim));
}

}  // namespace parallax::nn
