// Random initialisation of a model.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/module.h>

#include "nn/config.h"

namespace parallax::nn {

/// Matrices normal(0, initializer_range), norm gains 1 (r_norm: r_norm_init), biases 0. One number
/// is drawn from Torch's global generator; each parameter then has its own stream, seeded by that
/// number and the parameter's name. So with one seed, models that differ in some parameters only
/// (the softmax and Parallax twins) start from the same values in all others.
void initialize(torch::nn::Module& model, const ModelConfig& config);

}  // namespace parallax::nn
