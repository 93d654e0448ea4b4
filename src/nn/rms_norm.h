// RMSNorm over the last dimension.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

namespace parallax::nn {

/// y = gain * x / sqrt(mean(x^2) + eps), computed in float32 or wider whatever the dtype of x, and
/// returned that wide: the caller rounds once, where it must.
class RmsNormImpl : public torch::nn::Module {
 public:
  RmsNormImpl(int64_t size, double eps, torch::Device device) : eps_(eps) {
    weight = register_parameter("weight", torch::empty({size}, device));
  }
  torch::Tensor forward(const torch::Tensor& x) const {
    const auto dtype = at::promote_types(x.scalar_type(), torch::kFloat32);
    return at::rms_norm(x.to(dtype), weight.sizes(), weight.to(dtype), eps_);
  }

  torch::Tensor weight;

 private:
  double eps_;
};
TORCH_MODULE(RmsNorm);

}  // namespace parallax::nn
