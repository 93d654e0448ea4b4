// Rotary tables and their application.
// SPDX-License-Identifier: Apache-2.0
#include "nn/rope.h"

#include "parallax/error.h"

namespace parallax::nn {

RotaryTables rotary_tables(const torch::Tensor& positions_N, int64_t head_dim, double theta) {
  const auto options = torch::TensorOptions().dtype(torch::kFloat32).device(positions_N.device());
  const auto exponents = torch::arange(0, head_dim, 2, options) / static_cast<double>(head_dim);
  const auto frequencies = torch::pow(theta, exponents).reciprocal();
  const auto angles = torch::outer(positions_N.to(torch::kFloat32), frequencies);
  return {.cos = angles.cos(), .sin = angles.sin()};
}

torch::Tensor apply_rope(const torch::Tensor& x, const RotaryTables& rope) {
  const auto dtype = at::promote_types(x.scalar_type(), torch::kFloat32);
  const auto cos = rope.cos.to(dtype).unsqueeze(-2);  // [N, 1, D / 2]
  const auto sin = rope.sin.to(dtype).unsqueeze(-2);
  const auto halves = x.to(dtype).chunk(2, -1);
  return torch::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
}

}  // namespace parallax::nn
