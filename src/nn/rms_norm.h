// RMSNorm over the last dimension.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

#include "nn/row_ops.h"

namespace parallax::nn {

/// y = gain * x / sqrt(mean(x^2) + eps), computed in float32 or wider whatever the dtype of x, and
/// rounded once to the wanted dtype.
class RmsNormImpl : public torch::nn::Module {
 public:
  RmsNormImpl(int64_t size, double eps, torch::Device device) : eps_(eps) {
    weight = register_parameter("weight", torch::empty({size}, device));
  }
  torch::Tensor forward(const torch::Tensor& x, torch::ScalarType dtype) const {
    return norm_rope(x, {.gain = weight, .eps = eps_, .dtype = dtype});
  }

  double eps() const { return eps_; }

  torch::Tensor weight;

 private:
  double eps_;
};
TORCH_MODULE(RmsNorm);

}  // namespace parallax::nn
