// A linear map whose parameters start empty on a chosen device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

namespace parallax::nn {

struct LinearOptions {
  int64_t in_features = 0, out_features = 0;
  bool bias = false;
  torch::Device device = torch::kCPU;
};

/// y = x W^T (+ b); weight [out, in], bias [out]. torch::nn::Linear would fill the weight with
/// random numbers that initialize() or a checkpoint then replaces, seconds for a 0.6B model.
class LinearImpl : public torch::nn::Module {
 public:
  explicit LinearImpl(const LinearOptions& options) {
    weight = register_parameter(
        "weight", torch::empty({options.out_features, options.in_features}, options.device));
    if (options.bias)
      bias = register_parameter("bias", torch::empty({options.out_features}, options.device));
  }
  torch::Tensor forward(const torch::Tensor& x) const { return torch::linear(x, weight, bias); }

  torch::Tensor weight, bias;
};
TORCH_MODULE(Linear);

}  // namespace parallax::nn
