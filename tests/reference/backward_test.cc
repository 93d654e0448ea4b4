// The backward pass against finite differences of the forward pass, and its identities.
// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "reference/float64_call.h"

namespace parallax::testing {
namespace {

double loss(Inputs& in, const Doubles& d_out) {
  const Result result = forward(in);
  double sum = 0.0;
  for (size_t idx = 0; idx < d_out.data.size(); ++idx)
    sum += d_out.data[idx] * result.out.data[idx];
  return sum;
}

/// Central differences with h = 1e-5: truncation h^2 f''' / 6 ~ 1e-10, rounding eps f / h ~ 1e-10.
Doubles finite_differences(Inputs& in, Doubles& input, const Doubles& d_out) {
  constexpr double kStep = 1e-5;
  Doubles gradient(input.sizes);
  for (size_t idx = 0; idx < input.data.size(); ++idx) {
    const double value = input.data[idx];
    input.data[idx] = value + kStep;
    const double above = loss(in, d_out);
    input.data[idx] = value - kStep;
    const double below = loss(in, d_out);
    input.data[idx] = value;
    gradient.data[idx] = (above - below) / (2 * kStep);
  }
  return gradient;
}

struct GradientCase {
  std::string name;
  Shape shape;
  AttentionOptions options{};
};

class ReferenceBackward : public ::testing::TestWithParam<GradientCase> {};

void expect_gradients_match_differences(Inputs& in) {
  constexpr double kTolerance = 1e-7;
  const Doubles d_out = random_tensor(in.q.sizes, 9);
  const Gradients gradients = backward(in, d_out);
  EXPECT_LE(max_difference(gradients.dq, finite_differences(in, in.q, d_out)), kTolerance) << "dq";
  EXPECT_LE(max_difference(gradients.dr, finite_differences(in, in.r, d_out)), kTolerance) << "dr";
  EXPECT_LE(max_difference(gradients.dk, finite_differences(in, in.k, d_out)), kTolerance) << "dk";
  EXPECT_LE(max_difference(gradients.dv, finite_differences(in, in.v, d_out)), kTolerance) << "dv";
}

TEST_P(ReferenceBackward, GradientsEqualFiniteDifferences) {
  Inputs in = Inputs::random(GetParam().shape, GetParam().options);
  expect_gradients_match_differences(in);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ReferenceBackward,
    ::testing::Values(GradientCase{"causal", {.B = 2, .Tq = 5, .Tk = 5, .D = 3}},
                      GradientCase{"full", {.Tq = 4, .Tk = 6, .D = 3}, {.mask = Mask::kFull}},
                      GradientCase{"window", {.Tq = 6, .Tk = 6, .D = 3}, {.window = 3}},
                      GradientCase{"group_of_3", {.Tq = 4, .Tk = 4, .Hq = 6, .Hkv = 2, .D = 2}},
                      GradientCase{"fewer_queries_than_keys", {.Tq = 2, .Tk = 5, .D = 4}},
                      GradientCase{"more_queries_than_keys", {.Tq = 5, .Tk = 3, .D = 4}},
                      GradientCase{
                          "given_scale", {.Tq = 4, .Tk = 4, .D = 3}, {.softmax_scale = 1.5f}}),
    [](const auto& instance) { return instance.param.name; });

TEST(ReferenceBackwardPacked, GradientsEqualFiniteDifferences) {
  Inputs in{.q = random_tensor({7, 2, 3}, 1),
            .r = random_tensor({7, 2, 3}, 2),
            .k = random_tensor({8, 1, 3}, 3),
            .v = random_tensor({8, 1, 3}, 4),
            .cu_seqlens_q = ints({0, 3, 3, 7}),
            .cu_seqlens_k = ints({0, 4, 6, 8})};
  expect_gradients_match_differences(in);
}

TEST(ReferenceBackwardIdentities, ScoreGradientsOfARowSumToZero) {
  // A key coordinate that is 1 for every key makes dq and dr there scale sum_j ds and sum_j dt.
  Inputs in = Inputs::random({.Tq = 7, .Tk = 7, .D = 4});
  for (int64_t key = 0; key < 7; ++key) in.k.row(0, key, 0)[3] = 1.0;
  Gradients gradients = backward(in, random_tensor(in.q.sizes, 9));
  for (int64_t query = 0; query < 7; ++query) {
    EXPECT_NEAR(gradients.dq.row(0, query, 0)[3], 0.0, 1e-12);
    EXPECT_NEAR(gradients.dr.row(0, query, 0)[3], 0.0, 1e-12);
  }
}

TEST(ReferenceBackwardIdentities, WeightsOfARowSumToOne) {
  // With d_out = 1 everywhere, the sum of dv over keys counts the rows with a visible key.
  Inputs in = Inputs::random({.Tq = 6, .Tk = 4, .D = 2});
  const Gradients gradients = backward(in, Doubles(in.q.sizes, 1.0));
  double sum = 0.0;
  for (double value : gradients.dv.data) sum += value;
  EXPECT_NEAR(sum, 4 * 2, 1e-12);
}

TEST(ReferenceBackwardIdentities, RowsWithoutKeysGetZeroGradients) {
  Inputs in = Inputs::random({.Tq = 3, .Tk = 1, .D = 2});
  Gradients gradients = backward(in, random_tensor(in.q.sizes, 9));
  for (int64_t query : {0, 1})
    for (int64_t d : {0, 1}) {
      EXPECT_EQ(gradients.dq.row(0, query, 0)[d], 0.0);
      EXPECT_EQ(gradients.dr.row(0, query, 0)[d], 0.0);
    }
}

TEST(ReferenceBackwardIdentities, KeysThatNobodySeesGetZeroGradients) {
  Inputs in = Inputs::random({.Tq = 2, .Tk = 6, .D = 2}, {.window = 2});
  for (double* tensor : {in.k.row(0, 0, 0), in.v.row(0, 0, 0)})
    std::fill_n(tensor, 3 * 2, kNaN);  // keys 0 to 2
  Gradients gradients = backward(in, random_tensor(in.q.sizes, 9));
  for (size_t idx = 0; idx < gradients.dk.data.size(); ++idx) {
    EXPECT_EQ(gradients.dk.data[idx] == 0.0, idx < 6) << idx;
    EXPECT_EQ(gradients.dv.data[idx] == 0.0, idx < 6) << idx;
  }
  EXPECT_FALSE(std::isnan(loss(in, Doubles(in.q.sizes, 1.0))));
}

}  // namespace
}  // namespace parallax::testing
