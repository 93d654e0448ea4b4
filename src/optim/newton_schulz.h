// Orthogonalisation of a matrix by Newton-Schulz iteration: every singular value is moved towards 1
// by an odd polynomial, with matrix products only.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace parallax::optim {

/// Which polynomials are used; the values that sigma in [0.01, 1] reaches after the default steps:
///   kJordan         5 x one quintic, steepest at 0                [0.68, 1.13]
///   kPolarExpress   8 different quintics, each the best minimax   1 to 1e-4
///   kExact          12 x 2 s - 1.5 s^3 + 0.5 s^5                  1 to 1e-4
enum class NewtonSchulzSet { kJordan, kPolarExpress, kExact };

struct NewtonSchulzOptions {
  NewtonSchulzSet set = NewtonSchulzSet::kJordan;
  /// 0 stands for the set's default: 5, 8, 12.
  int64_t num_steps = 0;
  /// What the products are computed in: kFloat32, kBFloat16 or kFloat64.
  torch::ScalarType dtype = torch::kFloat32;
};

/// "jordan", "polar_express" or "exact"; anything else is an Error that lists them.
NewtonSchulzSet parse_newton_schulz_set(std::string_view name);

/// One (a, b, c) per step, as they are applied: s <- a s + b s^3 + c s^5.
std::vector<std::array<double, 3>> newton_schulz_coefficients(const NewtonSchulzOptions& options);
/// The Frobenius norm that the input is scaled to before the first step, 1 at most.
double newton_schulz_input_norm(NewtonSchulzSet set);

/// U f(S) V^T for matrix = U S V^T with S scaled to Frobenius norm newton_schulz_input_norm() and f
/// the composition of the polynomials. Returns a new [rows, cols] tensor of options.dtype;
/// invariant under positive scaling of the input, equivariant under transposition; zero stays zero.
/// Throws if `matrix` is not a 2-D floating-point tensor.
torch::Tensor newton_schulz(const torch::Tensor& matrix, const NewtonSchulzOptions& options = {});

}  // namespace parallax::optim
