// A linear map whose parameters start empty on a chosen device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/autocast_mode.h>
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

/// The dtype that linear layers and attention compute in for an input x: autocast's where it is on,
/// which leaves float64 alone, else that of x.
inline torch::ScalarType compute_dtype(const torch::Tensor& x) {
  const auto device = x.device().type();
  const bool eligible = x.scalar_type() != torch::kFloat64;
  return eligible && at::autocast::is_autocast_enabled(device)
             ? at::autocast::get_autocast_dtype(device)
             : x.scalar_type();
}

}  // namespace parallax::nn
