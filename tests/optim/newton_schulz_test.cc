// Newton-Schulz against its definition on singular values, and its invariances.
// SPDX-License-Identifier: Apache-2.0
#include "optim/newton_schulz.h"

#include <gtest/gtest.h>

#include <cmath>

#include "parallax/error.h"

namespace parallax::optim {
namespace {

constexpr NewtonSchulzSet kSets[] = {NewtonSchulzSet::kJordan, NewtonSchulzSet::kPolarExpress,
                                     NewtonSchulzSet::kExact};

double on_singular_value(double sigma, const NewtonSchulzOptions& options) {
  for (const auto& [a, b, c] : newton_schulz_coefficients(options))
    sigma = a * sigma + b * std::pow(sigma, 3) + c * std::pow(sigma, 5);
  return sigma;
}

torch::Tensor random_matrix(int64_t num_rows, int64_t num_cols, torch::ScalarType dtype) {
  auto generator = torch::make_generator<torch::CPUGeneratorImpl>(uint64_t{17});
  return torch::randn({num_rows, num_cols}, generator, dtype);
}

double max_abs(const torch::Tensor& tensor) { return tensor.abs().max().item<double>(); }

TEST(NewtonSchulz, AppliesThePolynomialsToTheSingularValues) {
  for (const auto set : kSets)
    for (const auto& [num_rows, num_cols] : {std::pair{24, 40}, {40, 24}, {32, 32}}) {
      const NewtonSchulzOptions options{.set = set, .dtype = torch::kFloat64};
      const auto matrix = random_matrix(num_rows, num_cols, torch::kFloat64);
      const auto [u, s, vh] = torch::linalg_svd(matrix, /*full_matrices=*/false);
      const double scale = newton_schulz_input_norm(set) / matrix.norm().item<double>();
      auto moved = s.clone();
      for (int64_t i = 0; i < s.size(0); ++i)
        moved[i] = on_singular_value(s[i].item<double>() * scale, options);
      const auto expected = u.mm(torch::diag(moved)).mm(vh);
      EXPECT_LT(max_abs(newton_schulz(matrix, options) - expected), 1e-10);
    }
}

TEST(NewtonSchulz, BringsSingularValuesIntoTheStatedRanges) {
  const auto range = [](const NewtonSchulzOptions& options) {
    double low = 1e9, high = -1e9;
    for (double sigma = 0.01; sigma <= 1; sigma += 1e-4) {
      const double value =
          on_singular_value(sigma * newton_schulz_input_norm(options.set), options);
      low = std::min(low, value), high = std::max(high, value);
    }
    return std::pair{low, high};
  };
  const auto jordan = range({.set = NewtonSchulzSet::kJordan});
  EXPECT_NEAR(jordan.first, 0.68, 0.01);
  EXPECT_NEAR(jordan.second, 1.13, 0.01);
  const auto polar5 = range({.set = NewtonSchulzSet::kPolarExpress, .num_steps = 5});
  EXPECT_NEAR(polar5.first, 0.87, 0.01);
  EXPECT_NEAR(polar5.second, 1.12, 0.01);
  for (const auto set : {NewtonSchulzSet::kPolarExpress, NewtonSchulzSet::kExact}) {
    const auto converged = range({.set = set});
    EXPECT_NEAR(converged.first, 1, 1e-4);
    EXPECT_NEAR(converged.second, 1, 1e-4);
  }
}

TEST(NewtonSchulz, DoesNotDependOnTheScaleOfTheInput) {
  for (const auto set : kSets)
    for (const auto dtype : {torch::kFloat32, torch::kFloat64}) {
      const NewtonSchulzOptions options{.set = set, .dtype = dtype};
      const auto matrix = random_matrix(16, 48, dtype);
      // Powers of two scale without rounding, so nothing at all may change.
      EXPECT_TRUE(
          torch::equal(newton_schulz(matrix, options), newton_schulz(matrix * 64, options)));
      EXPECT_TRUE(
          torch::equal(newton_schulz(matrix, options), newton_schulz(matrix / 1024, options)));
    }
}

TEST(NewtonSchulz, CommutesWithTransposition) {
  for (const auto set : kSets) {
    const NewtonSchulzOptions options{.set = set, .dtype = torch::kFloat64};
    const auto matrix = random_matrix(20, 50, torch::kFloat64);
    EXPECT_LT(max_abs(newton_schulz(matrix.t(), options) - newton_schulz(matrix, options).t()),
              1e-12);
  }
}

TEST(NewtonSchulz, KeepsZeroAndRankDeficientInputsFinite) {
  for (const auto set : kSets)
    for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
      const NewtonSchulzOptions options{.set = set, .dtype = dtype};
      EXPECT_EQ(max_abs(newton_schulz(torch::zeros({8, 12}), options)), 0);
      const auto rank_one =
          random_matrix(24, 1, torch::kFloat32).mm(random_matrix(1, 16, torch::kFloat32));
      const auto result = newton_schulz(rank_one, options).to(torch::kFloat64);
      EXPECT_TRUE(result.isfinite().all().item<bool>());
      // Rounding fills the null space, where it may grow up to the range of the set, not beyond.
      const auto singular_values = torch::linalg_svdvals(result);
      EXPECT_LT(singular_values[0].item<double>(), 1.2);
      EXPECT_GT(singular_values[0].item<double>(), 0.68);
    }
}

TEST(NewtonSchulz, InBfloat16StaysWithinTwoPercentOfFloat32) {
  const auto matrix = random_matrix(64, 96, torch::kFloat32);
  const auto exact = newton_schulz(matrix);
  const auto rounded = newton_schulz(matrix, {.dtype = torch::kBFloat16}).to(torch::kFloat32);
  EXPECT_LT(((rounded - exact).norm() / exact.norm()).item<double>(), 2e-2);
}

TEST(NewtonSchulz, RefusesWhatIsNotAMatrix) {
  EXPECT_THROW(newton_schulz(torch::zeros({4})), Error);
  EXPECT_THROW(newton_schulz(torch::zeros({4, 4}, torch::kInt64)), Error);
  EXPECT_THROW(parse_newton_schulz_set("quintic"), Error);
  EXPECT_THROW(newton_schulz_coefficients({.num_steps = -1}), Error);
}

}  // namespace
}  // namespace parallax::optim
