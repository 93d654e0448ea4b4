// Softmax attention as Qwen3, Qwen2 and Llama have it: grouped key heads, optional per-head RMSNorm
// on q and k, RoPE, causal. Also the base of Parallax, which adds a probe.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "nn/linear.h"
#include "nn/mixers/registry.h"
#include "nn/rms_norm.h"

namespace parallax::nn {

/// Training uses Torch's scaled_dot_product_attention. Cached decoding, and training on packed
/// sequences or with a sliding window (for which Torch would need a T x T mask), use the Parallax
/// ops with a zero probe, which is softmax attention exactly.
class SoftmaxMixer : public TokenMixer {
 public:
  explicit SoftmaxMixer(const MixerOptions& options);

  torch::Tensor forward(const torch::Tensor& x, const RotaryTables& rope,
                        const std::optional<torch::Tensor>& cu_seqlens) override;
  std::unique_ptr<MixerCache> make_cache(int64_t batch_size, int64_t capacity,
                                         torch::TensorOptions options) const override;
  torch::Tensor decode(const torch::Tensor& x_NC, const RotaryTables& rope, const DecodeStep& step,
                       MixerCache& cache) override;
  double flops(int64_t num_tokens) const override;

 protected:
  /// The probe r [.., Hq, D] of x [.., C]; undefined when there is none.
  virtual torch::Tensor probe(const torch::Tensor& x, const RotaryTables& rope);

  /// proj(x) as heads [.., H, D].
  torch::Tensor heads(Linear& proj, const torch::Tensor& x) const;
  /// The same, each head normalised (if `norm` is there) and rotated (if `rope` is).
  torch::Tensor turned_heads(Linear& proj, const RmsNorm& norm, const torch::Tensor& x,
                             const RotaryTables* rope) const;
  /// FLOPs of the scores and value sums of one sequence, given those of one (query, key, head).
  double pair_flops(int64_t num_tokens, double flops_per_pair) const;

  const ModelConfig config_;

 private:
  struct Projected {
    torch::Tensor q, k, v;
  };
  Projected project(const torch::Tensor& x, const RotaryTables& rope);

  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
  RmsNorm q_norm_{nullptr}, k_norm_{nullptr};
};

}  // namespace parallax::nn
