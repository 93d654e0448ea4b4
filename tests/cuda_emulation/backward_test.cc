// The Hopper backward kernels on the emulated device: the float64 reference within the derived
// tolerance, the same bits in other schedules, hidden numbers that are not finite.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cuda_emulation/device.h"
#include "cuda_emulation/hopper_cases.h"
#include "support/tolerance.h"

namespace parallax::testing {
namespace {

class HopperBackward : public ::testing::TestWithParam<AttentionCase> {};
class HopperBackwardSlow : public HopperBackward {};

void expect_gradients_equal_reference(const AttentionCase& c) {
  const AttentionInputs inputs(c, test_seed());
  const std::string context = c.name() + ", PLX_TEST_SEED=" + std::to_string(test_seed());
  const ForwardValues forward = true_forward(inputs.problem);
  const ForwardValues saved = rounded(forward, c.dtype);
  const GradientValues truth = true_backward(inputs.problem, forward);
  const GradientValues result = values_of(run_backward(hopper(), inputs, saved));
  expect_right([&](int num_orders) {
    std::vector<Verdict> verdicts;
    judge_gradients(c.dtype, result, truth,
                    plain_errors(inputs.problem, truth, saved, c.dtype, num_orders), context,
                    verdicts);
    return verdicts;
  });
}

TEST_P(HopperBackward, EqualsTheReference) { expect_gradients_equal_reference(GetParam()); }
TEST_P(HopperBackwardSlow, EqualsTheReference) { expect_gradients_equal_reference(GetParam()); }

std::vector<AttentionCase> instance_cases() {
  std::vector<AttentionCase> cases;
  for (const int64_t D : {64, 96, 128, 192, 256})
    for (const DType dtype : {kBf16, kFp16}) {
      cases.push_back({.Tq = 70, .Hq = 2, .Hkv = 1, .D = D, .dtype = dtype});
      cases.push_back({.Tq = 200, .D = D, .dtype = dtype, .regime = Regime::kScoreMean50});
    }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Instances, HopperBackward, ::testing::ValuesIn(instance_cases()),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Shapes64, HopperBackward, ::testing::ValuesIn(shape_cases(64)), case_name);
INSTANTIATE_TEST_SUITE_P(Shapes128, HopperBackwardSlow, ::testing::ValuesIn(shape_cases(128)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Shapes192, HopperBackwardSlow, ::testing::ValuesIn(shape_cases(192)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Shapes256, HopperBackwardSlow, ::testing::ValuesIn(shape_cases(256)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Regimes64, HopperBackward, ::testing::ValuesIn(regime_cases(64)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Regimes128, HopperBackwardSlow, ::testing::ValuesIn(regime_cases(128)),
                         case_name);

class HopperBackwardSchedulesSlow : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(HopperBackwardSchedulesSlow, GiveTheSameBits) {
  constexpr uint64_t kSchedules = 20;
  const AttentionInputs inputs(GetParam(), test_seed());
  const ForwardValues saved = values_of(run_forward(hopper(), inputs));
  const GradientTensors expected = run_backward(hopper(), inputs, saved);
  for (uint64_t seed = test_seed() + 1; seed <= test_seed() + kSchedules; ++seed) {
    emulation::set_seed(seed);
    const GradientTensors found = run_backward(hopper(), inputs, saved);
    ASSERT_TRUE(found.dq.same_bits(expected.dq)) << seed;
    ASSERT_TRUE(found.dr.same_bits(expected.dr)) << seed;
    ASSERT_TRUE(found.dk.same_bits(expected.dk)) << seed;
    ASSERT_TRUE(found.dv.same_bits(expected.dv)) << seed;
  }
}

/// Several tiles for each block and more steps than stages.
std::vector<AttentionCase> schedule_cases() {
  std::vector<AttentionCase> cases;
  for (const int64_t D : {64, 96, 128, 256})
    cases.push_back({.B = 2, .Tq = 390, .Hq = 2, .Hkv = 1, .D = D, .dtype = kBf16});
  cases.push_back({.Hq = 2,
                   .Hkv = 1,
                   .D = 64,
                   .dtype = kFp16,
                   .window = 100,
                   .packed = {{0, 7}, {70, 250}, {300, 200}, {1, 90}}});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(SeveralTiles, HopperBackwardSchedulesSlow,
                         ::testing::ValuesIn(schedule_cases()), case_name);

/// A row of one tensor that is not finite: what does not meet it keeps its bits, what does is NaN.
void expect_hidden_changes_no_bit(const AttentionCase& c) {
  const int64_t num_keys = c.Tk.value_or(c.Tq), bad_key = num_keys * 2 / 3, bad_query = c.Tq / 3;
  const AttentionInputs inputs(c, test_seed());
  const ForwardValues saved = values_of(run_forward(hopper(), inputs));
  const GradientTensors expected = run_backward(hopper(), inputs, saved);
  const auto sees = [&](int64_t query, int64_t key) {
    const int64_t newest = query + num_keys - c.Tq;
    return key <= newest && key > newest - c.window.value_or(num_keys);
  };
  const auto compare = [&](const HostTensor& found, const HostTensor& before, int64_t row_numbers,
                           const auto& meets) {
    for (int64_t idx = 0; idx < found.num_elements(); ++idx) {
      const int64_t row = idx / row_numbers;
      if (meets(row))
        ASSERT_TRUE(std::isnan(found.get(idx))) << "row " << row;
      else
        ASSERT_EQ(found.get(idx), before.get(idx)) << "row " << row;
    }
  };
  for (HostTensor AttentionInputs::* tensor : {&AttentionInputs::k, &AttentionInputs::v}) {
    AttentionInputs spoilt = inputs;
    for (int64_t d = 0; d < c.D; d += 3) (spoilt.*tensor).set(bad_key * c.D + d, NAN);
    const GradientTensors found = run_backward(hopper(), spoilt, saved);
    const auto meets = [&](int64_t query) { return sees(query, bad_key); };
    compare(found.dq, expected.dq, c.D * c.Hq, meets);
    compare(found.dr, expected.dr, c.D * c.Hq, meets);
    const auto is_bad = [&](int64_t key) { return key == bad_key; };
    compare(found.dk, expected.dk, c.D, is_bad);
  }
  for (HostTensor AttentionInputs::* tensor :
       {&AttentionInputs::q, &AttentionInputs::r, &AttentionInputs::d_out}) {
    AttentionInputs spoilt = inputs;
    for (int64_t d = 0; d < c.D; d += 3)
      (spoilt.*tensor).set(bad_query * c.Hq * c.D + d, std::numeric_limits<double>::infinity());
    const GradientTensors found = run_backward(hopper(), spoilt, saved);
    const auto meets = [&](int64_t key) { return sees(bad_query, key); };
    compare(found.dk, expected.dk, c.D, meets);
    compare(found.dv, expected.dv, c.D, meets);
  }
}

class HopperHiddenRows : public ::testing::TestWithParam<int64_t> {};
TEST_P(HopperHiddenRows, ChangeNoBitOfTheGradients) {
  const int64_t D = GetParam();
  expect_hidden_changes_no_bit({.Tq = 200, .Hq = 2, .Hkv = 1, .D = D, .dtype = kBf16});
  expect_hidden_changes_no_bit({.Tq = 300, .D = D, .dtype = kFp16, .window = 60});
  expect_hidden_changes_no_bit({.Tq = 70, .Tk = 200, .D = D, .dtype = kBf16});
}
INSTANTIATE_TEST_SUITE_P(HeadDims, HopperHiddenRows, ::testing::Values(64, 128, 192));

}  // namespace
}  // namespace parallax::testing
