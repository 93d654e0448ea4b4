// Softmax attention layer.
// SPDX-License-Identifier: Apache-2.0
#include "nn/mixers/softmax.h"

#include <algorithm>

#include "nn/attention_op.h"
#include "nn/kv_cache.h"
#include "nn/row_ops.h"

namespace parallax::nn {

using torch::Tensor;

namespace {

/// q [B, T, Hq, D], k and v [B, T, Hkv, D] -> [B, T, Hq, D]. Torch's kernels take the transposed
/// views as they are and give an output of the same layout, so nothing is copied.
Tensor causal_softmax(const Tensor& q, Tensor k, Tensor v) {
  // On CUDA the only float32 kernel that keeps no T x T matrix wants a key head per query head.
  if (const int64_t group = q.size(2) / k.size(2);
      group > 1 && q.is_cuda() && q.scalar_type() == torch::kFloat32) {
    k = k.repeat_interleave(group, 2);
    v = v.repeat_interleave(group, 2);
  }
  return at::scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                                          /*attn_mask=*/{}, /*dropout_p=*/0.0, /*is_causal=*/true,
                                          /*scale=*/std::nullopt, /*enable_gqa=*/true)
      .transpose(1, 2);
}

}  // namespace

SoftmaxMixer::SoftmaxMixer(const MixerOptions& options) : config_(options.config) {
  const ModelConfig& config = config_;
  const int64_t q_size = config.num_attention_heads * config.head_dim;
  const int64_t kv_size = config.num_key_value_heads * config.head_dim;
  const auto add = [&](const char* name, LinearOptions linear) {
    linear.device = options.device;
    return register_module(name, Linear(linear));
  };
  const int64_t hidden = config.hidden_size;
  const bool bias = config.attention_bias;
  q_proj_ = add("q_proj", {.in_features = hidden, .out_features = q_size, .bias = bias});
  k_proj_ = add("k_proj", {.in_features = hidden, .out_features = kv_size, .bias = bias});
  v_proj_ = add("v_proj", {.in_features = hidden, .out_features = kv_size, .bias = bias});
  o_proj_ = add("o_proj", {.in_features = q_size, .out_features = hidden});
  if (config.qk_norm) {
    const auto add_norm = [&](const char* name) {
      return register_module(name, RmsNorm(config.head_dim, config.rms_norm_eps, options.device));
    };
    q_norm_ = add_norm("q_norm");
    k_norm_ = add_norm("k_norm");
  }
}

Tensor SoftmaxMixer::probe(const Tensor&, const RotaryTables&) { return {}; }

Tensor SoftmaxMixer::heads(Linear& proj, const Tensor& x) const {
  return proj(x).unflatten(-1, {-1, config_.head_dim});
}

Tensor SoftmaxMixer::turned_heads(Linear& proj, const RmsNorm& norm, const Tensor& x,
                                  const RotaryTables* rope) const {
  return norm_rope(heads(proj, x), {.gain = norm ? norm->weight : Tensor(),
                                    .eps = norm ? norm->eps() : 0,
                                    .rope = rope,
                                    .dtype = compute_dtype(x)});
}

SoftmaxMixer::Projected SoftmaxMixer::project(const Tensor& x, const RotaryTables& rope) {
  return {.q = turned_heads(q_proj_, q_norm_, x, &rope),
          .k = turned_heads(k_proj_, k_norm_, x, &rope),
          .v = heads(v_proj_, x)};
}

Tensor SoftmaxMixer::forward(const Tensor& x, const RotaryTables& rope,
                             const std::optional<Tensor>& cu_seqlens) {
  const auto [q, k, v] = project(x, rope);
  Tensor r = probe(x, rope), out;
  if (!r.defined() && (cu_seqlens || config_.sliding_window)) r = torch::zeros_like(q);
  if (r.defined()) {
    out = attention(q, r, k, v, {.window = config_.sliding_window, .cu_seqlens = cu_seqlens});
  } else {
    out = causal_softmax(q, k, v);
  }
  return o_proj_(out.flatten(-2));
}

std::unique_ptr<MixerCache> SoftmaxMixer::make_cache(int64_t batch_size, int64_t capacity,
                                                     torch::TensorOptions options) const {
  auto cache = std::make_unique<KvCache>();
  const int64_t num_heads = config_.num_key_value_heads, head_dim = config_.head_dim;
  cache->k = torch::empty({batch_size, capacity, num_heads, head_dim}, options);
  cache->v = torch::empty_like(cache->k);
  return cache;
}

Tensor SoftmaxMixer::decode(const Tensor& x_NC, const RotaryTables& rope, const DecodeStep& step,
                            MixerCache& cache) {
  auto& kv = dynamic_cast<KvCache&>(cache);
  const auto [q, k, v] = project(x_NC, rope);
  kv.append(k, v, step);
  const auto dtype = kv.k.scalar_type();
  Tensor r = probe(x_NC, rope);
  r = r.defined() ? r.to(dtype) : torch::zeros_like(q, dtype);
  const Tensor out = cached_attention(q.to(dtype), r, kv.k, kv.v, step, config_.sliding_window);
  return o_proj_(out.flatten(-2).to(x_NC.scalar_type()));
}

double SoftmaxMixer::pair_flops(int64_t num_tokens, double flops_per_pair) const {
  // Query i sees min(i + 1, window) keys.
  const auto tokens = static_cast<double>(num_tokens);
  const auto window =
      static_cast<double>(std::min(config_.sliding_window.value_or(num_tokens), num_tokens));
  const double pairs = tokens * window - window * (window - 1) / 2;
  return pairs * flops_per_pair * static_cast<double>(config_.num_attention_heads);
}

double SoftmaxMixer::flops(int64_t num_tokens) const {
  double weights = 0;
  for (const auto& parameter : parameters())
    if (parameter.dim() == 2) weights += static_cast<double>(parameter.numel());
  const auto head_dim = static_cast<double>(config_.head_dim);
  return 2 * weights * static_cast<double>(num_tokens) + pair_flops(num_tokens, 4 * head_dim);
}

}  // namespace parallax::nn
