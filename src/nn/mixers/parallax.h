// Parallax attention: softmax attention minus a covariance correction along a learned probe.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "nn/mixers/softmax.h"

namespace parallax::nn {

/// out_i = E_p[v] - Cov_p(v, k) r_i with the probe r = W_R x: W_Q's shape and head grouping, its
/// own per-head RMSNorm (config.r_norm) and q's rotary angles (config.r_rope). r is never cached.
class ParallaxMixer final : public SoftmaxMixer {
 public:
  explicit ParallaxMixer(const MixerOptions& options);
  double flops(int64_t num_tokens) const override;

 protected:
  torch::Tensor probe(const torch::Tensor& x, const RotaryTables& rope) override;

 private:
  Linear r_proj_{nullptr};
  RmsNorm r_norm_{nullptr};
};

}  // namespace parallax::nn
