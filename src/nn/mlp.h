// The SwiGLU feed-forward part of a decoder layer.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "nn/config.h"
#include "nn/linear.h"
#include "nn/row_ops.h"

namespace parallax::nn {

/// y = W_down (silu(W_gate x) * W_up x), on the last dimension of x.
class MlpImpl : public torch::nn::Module {
 public:
  MlpImpl(const ModelConfig& config, torch::Device device) {
    const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
    const LinearOptions widen{.in_features = hidden, .out_features = inner, .device = device};
    const LinearOptions narrow{.in_features = inner, .out_features = hidden, .device = device};
    gate_proj_ = register_module("gate_proj", Linear(widen));
    up_proj_ = register_module("up_proj", Linear(widen));
    down_proj_ = register_module("down_proj", Linear(narrow));
  }
  torch::Tensor forward(const torch::Tensor& x) {
    return down_proj_(swiglu(gate_proj_(x), up_proj_(x)));
  }

 private:
  Linear gate_proj_{nullptr}, up_proj_{nullptr}, down_proj_{nullptr};
};
TORCH_MODULE(Mlp);

}  // namespace parallax::nn
