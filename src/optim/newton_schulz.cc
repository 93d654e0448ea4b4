// Newton-Schulz: X <- a X + (b A + c A^2) X with A = X X^T, so that each step costs one Gram matrix
// of the short side and two products with it.
// SPDX-License-Identifier: Apache-2.0
#include "optim/newton_schulz.h"

#include <cmath>

#include "parallax/error.h"

namespace parallax::optim {
namespace {

// K. Jordan's quintic: the largest slope at 0 whose image of [0, 1] stays near 1.
constexpr std::array<double, 3> kJordanStep = {3.4445, -4.7750, 2.0315};

// Converges to 1 exactly from anywhere in (0, 1], slower near 0.
constexpr std::array<double, 3> kExactStep = {2.0, -1.5, 0.5};

// Polar Express (arXiv 2505.16932): the minimax quintic of each step for singular values from 1e-3.
// The last row is the limit and repeats.
constexpr std::array<std::array<double, 3>, 8> kPolarExpressSteps = {{
    {8.28721201814563, -23.595886519098837, 17.300387312530933},
    {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
    {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
    {3.3184196573706015, -2.488488024314874, 0.51004894012372},
    {2.300652019954817, -1.6689039845747493, 0.4188073119525673},
    {1.891301407787398, -1.2679958271945868, 0.37680408948524835},
    {1.8750014808534479, -1.2500016453999487, 0.3750001645474248},
    {1.875, -1.25, 0.375},
}};
// Room for rounding: no step may push a singular value past where the next polynomial turns over.
constexpr double kPolarExpressSafety = 1.01;

// Norms below this are divided by it instead: a zero matrix stays zero.
constexpr double kSmallestNorm = 1e-7;

int64_t default_steps(NewtonSchulzSet set) {
  switch (set) {
    case NewtonSchulzSet::kJordan:
      return 5;
    case NewtonSchulzSet::kPolarExpress:
      return 8;
    case NewtonSchulzSet::kExact:
      return 12;
  }
  PLX_FAIL("unknown Newton-Schulz set");
}

std::array<double, 3> polar_express_step(int64_t step_idx, bool is_last) {
  const auto row = std::min<size_t>(static_cast<size_t>(step_idx), kPolarExpressSteps.size() - 1);
  std::array<double, 3> step = kPolarExpressSteps[row];
  if (!is_last) {
    step[0] /= kPolarExpressSafety;
    step[1] /= std::pow(kPolarExpressSafety, 3);
    step[2] /= std::pow(kPolarExpressSafety, 5);
  }
  return step;
}

}  // namespace

NewtonSchulzSet parse_newton_schulz_set(std::string_view name) {
  if (name == "jordan") return NewtonSchulzSet::kJordan;
  if (name == "polar_express") return NewtonSchulzSet::kPolarExpress;
  if (name == "exact") return NewtonSchulzSet::kExact;
  PLX_FAIL("unknown Newton-Schulz set '", name, "'; it is one of jordan, polar_express, exact");
}

std::vector<std::array<double, 3>> newton_schulz_coefficients(const NewtonSchulzOptions& options) {
  PLX_CHECK(options.num_steps >= 0, "Newton-Schulz steps are ", options.num_steps,
            "; 0 (the set's default) or more");
  const int64_t num_steps = options.num_steps == 0 ? default_steps(options.set) : options.num_steps;
  std::vector<std::array<double, 3>> steps;
  for (int64_t step_idx = 0; step_idx < num_steps; ++step_idx) {
    switch (options.set) {
      case NewtonSchulzSet::kJordan:
        steps.push_back(kJordanStep);
        break;
      case NewtonSchulzSet::kPolarExpress:
        steps.push_back(polar_express_step(step_idx, step_idx + 1 == num_steps));
        break;
      case NewtonSchulzSet::kExact:
        steps.push_back(kExactStep);
        break;
    }
  }
  return steps;
}

double newton_schulz_input_norm(NewtonSchulzSet set) {
  return set == NewtonSchulzSet::kPolarExpress ? 1 / kPolarExpressSafety : 1;
}

torch::Tensor newton_schulz(const torch::Tensor& matrix, const NewtonSchulzOptions& options) {
  PLX_CHECK(matrix.dim() == 2 && matrix.is_floating_point(),
            "Newton-Schulz takes a 2-D floating-point matrix, given ", matrix.dim(),
            " dimensions of ", matrix.dtype());
  torch::NoGradGuard no_grad;
  const bool is_tall = matrix.size(0) > matrix.size(1);
  torch::Tensor x = matrix.to(options.dtype);
  if (is_tall) x = x.t();
  x = x / x.norm().clamp_min(kSmallestNorm);
  if (const double norm = newton_schulz_input_norm(options.set); norm != 1) x.mul_(norm);
  for (const auto& [a, b, c] : newton_schulz_coefficients(options)) {
    const torch::Tensor gram = x.mm(x.t());
    const torch::Tensor polynomial = torch::addmm(gram, gram, gram, /*beta=*/b, /*alpha=*/c);
    x = torch::addmm(x, polynomial, x, /*beta=*/a);
  }
  return is_tall ? x.t() : x;
}

}  // namespace parallax::optim
