// Rotary tables.
// SPDX-License-Identifier: Apache-2.0
#include "nn/rope.h"

namespace parallax::nn {

RotaryTables rotary_tables(const torch::Tensor& positions_N, int64_t head_dim, double theta) {
  const auto options = torch::TensorOptions().dtype(torch::kFloat32).device(positions_N.device());
  const auto exponents = torch::arange(0, head_dim, 2, options) / static_cast<double>(head_dim);
  const auto frequencies = torch::pow(theta, exponents).reciprocal();
  const auto angles = torch::outer(positions_N.to(torch::kFloat32), frequencies);
  return {.cos = angles.cos(), .sin = angles.sin()};
}

}  // namespace parallax::nn
