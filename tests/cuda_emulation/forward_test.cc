// The Hopper forward kernel on the emulated device: the float64 reference within the derived
// tolerance, the same bits in other schedules and without the outputs that training saves, hidden
// values that are not finite. tests/conformance covers it too where its cases are the kernel's.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cuda/backend.h"
#include "cuda_emulation/device.h"
#include "cuda_emulation/hopper_cases.h"
#include "support/attention_case.h"
#include "support/tolerance.h"

namespace parallax::testing {
namespace {

class HopperForward : public ::testing::TestWithParam<AttentionCase> {};
class HopperForwardSlow : public HopperForward {};

void expect_equals_reference(const AttentionCase& c) {
  const AttentionInputs inputs(c, test_seed());
  const std::string context = c.name() + ", PLX_TEST_SEED=" + std::to_string(test_seed());
  const ForwardTensors result = run_forward(hopper(), inputs);
  const ForwardValues truth = true_forward(inputs.problem);
  expect_right([&](int num_orders) {
    const ForwardErrors plain = plain_errors(inputs.problem, truth, c.dtype, num_orders);
    std::vector<Verdict> verdicts;
    judge_forward(c.dtype, values_of(result), truth, plain, context, verdicts);
    return verdicts;
  });
  const HostTensor inference = run_forward(hopper(), inputs, Outputs::kInference).out;
  EXPECT_TRUE(inference.same_bits(result.out)) << context;
}

TEST_P(HopperForward, EqualsTheReferenceWithAndWithoutStatistics) {
  expect_equals_reference(GetParam());
}
TEST_P(HopperForwardSlow, EqualsTheReferenceWithAndWithoutStatistics) {
  expect_equals_reference(GetParam());
}

std::vector<AttentionCase> instance_cases() {
  std::vector<AttentionCase> cases;
  for (const int64_t D : {64, 96, 128, 192, 256})
    for (const DType dtype : {kBf16, kFp16}) {
      cases.push_back({.Tq = 70, .Hq = 2, .Hkv = 1, .D = D, .dtype = dtype});
      cases.push_back({.Tq = 200, .D = D, .dtype = dtype, .regime = Regime::kScoreMean50});
    }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Instances, HopperForward, ::testing::ValuesIn(instance_cases()),
                         case_name);

INSTANTIATE_TEST_SUITE_P(Shapes64, HopperForward, ::testing::ValuesIn(shape_cases(64)), case_name);
INSTANTIATE_TEST_SUITE_P(Shapes128, HopperForwardSlow, ::testing::ValuesIn(shape_cases(128)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Shapes256, HopperForwardSlow, ::testing::ValuesIn(shape_cases(256)),
                         case_name);

INSTANTIATE_TEST_SUITE_P(Regimes64, HopperForward, ::testing::ValuesIn(regime_cases(64)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Regimes128, HopperForwardSlow, ::testing::ValuesIn(regime_cases(128)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Regimes256, HopperForwardSlow, ::testing::ValuesIn(regime_cases(256)),
                         case_name);

/// Several tiles for each block and several steps for each tile, so that every stage is used again.
std::vector<AttentionCase> schedule_cases() {
  std::vector<AttentionCase> cases;
  for (const int64_t D : {64, 96, 128, 192, 256})
    cases.push_back({.B = 2, .Tq = 260, .Hq = 2, .Hkv = 1, .D = D, .dtype = kBf16});
  cases.push_back({.Hq = 2,
                   .D = 64,
                   .dtype = kFp16,
                   .window = 100,
                   .packed = {{0, 7}, {70, 250}, {300, 200}, {1, 90}}});
  return cases;
}

class HopperSchedulesSlow : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(HopperSchedulesSlow, GiveTheSameBits) {
  constexpr uint64_t kSchedules = 20;
  const AttentionInputs inputs(GetParam(), test_seed());
  const ForwardTensors expected = run_forward(hopper(), inputs);
  for (uint64_t seed = test_seed() + 1; seed <= test_seed() + kSchedules; ++seed) {
    emulation::set_seed(seed);
    const ForwardTensors found = run_forward(hopper(), inputs);
    ASSERT_TRUE(found.out.same_bits(expected.out)) << seed;
    ASSERT_TRUE(found.out_softmax.same_bits(expected.out_softmax)) << seed;
    ASSERT_TRUE(found.lse.same_bits(expected.lse)) << seed;
    ASSERT_TRUE(found.t_mean.same_bits(expected.t_mean)) << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(SeveralTiles, HopperSchedulesSlow, ::testing::ValuesIn(schedule_cases()),
                         case_name);

/// A NaN or an infinity in v reaches the queries that see its key, in its columns, and the last
/// key, all NaN, the queries that see that; no other bit changes. Both are hidden from most queries
/// of their tiles, and the first from queries that it left the window of.
void expect_hidden_changes_no_bit(const AttentionCase& c) {
  const int64_t num_keys = c.Tk.value_or(c.Tq), bad_key = num_keys * 2 / 3, last_key = num_keys - 1;
  const AttentionInputs inputs(c, test_seed());
  AttentionInputs spoilt = inputs;
  for (int64_t d = 0; d < c.D; d += 3)
    spoilt.v.set(bad_key * c.D + d, d % 2 == 0 ? std::numeric_limits<double>::infinity() : NAN);
  for (int64_t d = 0; d < c.D; ++d) {
    spoilt.k.set(last_key * c.D + d, NAN);
    spoilt.v.set(last_key * c.D + d, NAN);
  }
  const HostTensor expected = run_forward(hopper(), inputs).out;
  const HostTensor found = run_forward(hopper(), spoilt).out;
  for (int64_t idx = 0; idx < found.num_elements(); ++idx) {
    const int64_t row = idx / c.D, query = row / c.Hq, newest = query + num_keys - c.Tq;
    const auto sees = [&](int64_t key) {
      return key <= newest && key > newest - c.window.value_or(num_keys);
    };
    const bool is_bad = sees(last_key) || (idx % c.D % 3 == 0 && sees(bad_key));
    ASSERT_EQ(std::isfinite(found.get(idx)), !is_bad) << "row " << row << ", d " << idx % c.D;
    if (sees(last_key)) {
      ASSERT_TRUE(std::isnan(found.get(idx))) << "row " << row << ", d " << idx % c.D;
    }
    if (!is_bad) {
      ASSERT_EQ(found.get(idx), expected.get(idx)) << "row " << row << ", d " << idx % c.D;
    }
  }
}

class HopperHiddenValues : public ::testing::TestWithParam<int64_t> {};
class HopperHiddenValuesSlow : public HopperHiddenValues {};

void expect_hidden_changes_no_bit(int64_t D) {
  expect_hidden_changes_no_bit({.Tq = 200, .Hq = 2, .Hkv = 1, .D = D, .dtype = kBf16});
  expect_hidden_changes_no_bit({.Tq = 300, .D = D, .dtype = kFp16, .window = 60});
  expect_hidden_changes_no_bit({.Tq = 70, .Tk = 200, .D = D, .dtype = kBf16});
}
TEST_P(HopperHiddenValues, ChangeNoBit) { expect_hidden_changes_no_bit(GetParam()); }
TEST_P(HopperHiddenValuesSlow, ChangeNoBit) { expect_hidden_changes_no_bit(GetParam()); }
INSTANTIATE_TEST_SUITE_P(HeadDims, HopperHiddenValues, ::testing::Values(64, 128));
INSTANTIATE_TEST_SUITE_P(HeadDims, HopperHiddenValuesSlow, ::testing::Values(96, 192, 256));

/// What the kernels for any GPU ask for exists on sm_86 and sm_89 too.
TEST(PortableKernels, NeedAtMost99KilobytesOfSharedMemory) {
  const unsigned limit = emulation::shared_limit();
  emulation::set_shared_limit(99 * 1024);
  for (const int64_t D : {64, 256}) {
    const AttentionInputs inputs({.Tq = 40, .D = D}, test_seed());
    const ForwardTensors forward = run_forward(cuda::portable_backend(), inputs);
    run_backward(cuda::portable_backend(), inputs, values_of(forward));
  }
  emulation::set_shared_limit(limit);
}

}  // namespace
}  // namespace parallax::testing
