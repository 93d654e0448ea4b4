// Forward and backward of every backend against the float64 reference, within the derived
// tolerance.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "support/attention_case.h"
#include "support/checks.h"

namespace parallax::testing {
namespace {

class Conformance : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(Conformance, ForwardAndBackwardEqualTheReference) {
  expect_case_conforms(GetParam(), test_seed());
}

std::string case_name(const ::testing::TestParamInfo<AttentionCase>& instance) {
  return instance.param.name();
}

constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

/// Lengths around the tiles' edges.
std::vector<AttentionCase> length_cases() {
  std::vector<AttentionCase> cases;
  for (const int64_t T : {1, 63, 64, 65, 127, 129})
    for (const Mask mask : {Mask::kCausal, Mask::kFull})
      cases.push_back({.B = T == 1 ? 64 : 2, .Tq = T, .Hq = 2, .Hkv = 1, .D = 64, .mask = mask});
  cases.push_back({.Tq = sanitizer_length(1000), .Hq = 2, .Hkv = 1, .D = 64});
  cases.push_back(
      {.Tq = sanitizer_length(1000), .D = 64, .dtype = DType::kBFloat16, .window = 200});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Lengths, Conformance, ::testing::ValuesIn(length_cases()), case_name);

std::vector<AttentionCase> head_dim_cases() {
  std::vector<AttentionCase> cases;
  for (const int64_t D : {1, 2, 7, 16, 17, 60, 64, 72, 100, 128, 129, 255, 256})
    for (const DType dtype : kTypes)
      cases.push_back({.B = 2, .Tq = 70, .Hq = 2, .Hkv = 2, .D = D, .dtype = dtype});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(HeadDims, Conformance, ::testing::ValuesIn(head_dim_cases()), case_name);

/// Group sizes that do and do not divide the row tile, and unequal lengths.
std::vector<AttentionCase> group_cases() {
  std::vector<AttentionCase> cases;
  for (const int64_t group : {1, 2, 3, 8})
    for (const DType dtype : kTypes)
      cases.push_back(
          {.B = 2, .Tq = 50, .Tk = 97, .Hq = 2 * group, .Hkv = 2, .D = 64, .dtype = dtype});
  cases.push_back({.B = 2, .Tq = 3, .Tk = 150, .Hq = 40, .Hkv = 1, .D = 32});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Groups, Conformance, ::testing::ValuesIn(group_cases()), case_name);

std::vector<AttentionCase> mask_cases() {
  std::vector<AttentionCase> cases;
  for (const int64_t window : {1, 2, 16, 63, 64, 65, 200, 1000})
    cases.push_back({.B = 2, .Tq = 150, .Hq = 2, .Hkv = 2, .D = 32, .window = window});
  cases.push_back({.B = 2, .Tq = 40, .Tk = 170, .D = 64, .window = 50});
  cases.push_back({.B = 2, .Tq = 170, .Tk = 40, .D = 64});  // 130 queries see nothing
  cases.push_back({.B = 2, .Tq = 170, .Tk = 40, .D = 64, .window = 20});
  cases.push_back({.B = 2, .Tq = 100, .Tk = 10, .D = 64, .mask = Mask::kFull});
  cases.push_back({.B = 2, .Tq = 10, .Tk = 100, .D = 64, .mask = Mask::kFull});
  cases.push_back({.B = 2, .Tq = 5, .Tk = 0, .D = 64});
  cases.push_back({.B = 2, .Tq = 0, .Tk = 5, .D = 64});
  cases.push_back({.B = 2, .Tq = 80, .D = 64, .softmax_scale = 1.0f});
  cases.push_back({.B = 2, .Tq = 80, .D = 64, .softmax_scale = -0.3f});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Masks, Conformance, ::testing::ValuesIn(mask_cases()), case_name);

std::vector<AttentionCase> packed_cases() {
  std::vector<AttentionCase> cases;
  const std::vector<SequenceLengths> equal{{15, 15}, {85, 85}, {0, 0}, {1, 1}, {130, 130}};
  const std::vector<SequenceLengths> unequal{{0, 7}, {5, 70}, {70, 5}, {33, 0}, {64, 65}, {0, 0}};
  for (const DType dtype : kTypes) {
    cases.push_back({.Hq = 4, .Hkv = 2, .D = 64, .dtype = dtype, .packed = equal});
    cases.push_back({.Hq = 3, .Hkv = 1, .D = 100, .dtype = dtype, .packed = unequal});
  }
  cases.push_back({.Hq = 2, .Hkv = 2, .D = 64, .window = 16, .packed = equal});
  cases.push_back({.Hq = 2, .Hkv = 2, .D = 64, .window = 16, .packed = unequal});
  cases.push_back({.Hq = 2, .Hkv = 2, .D = 64, .mask = Mask::kFull, .packed = unequal});
  cases.push_back({.Hq = 2, .Hkv = 1, .D = 48, .layout = Layout::kPadded, .packed = unequal});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Packed, Conformance, ::testing::ValuesIn(packed_cases()), case_name);

std::vector<AttentionCase> layout_cases() {
  std::vector<AttentionCase> cases;
  for (const Layout layout : {Layout::kPadded, Layout::kHeadsFirst})
    for (const DType dtype : kTypes)
      cases.push_back(
          {.B = 2, .Tq = 67, .Hq = 6, .Hkv = 2, .D = 61, .dtype = dtype, .layout = layout});
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    cases.push_back(
        {.B = 2, .Tq = 67, .Hq = 6, .Hkv = 2, .D = 64, .dtype = dtype, .layout = Layout::kGaps});
    cases.push_back({.Hq = 2,
                     .Hkv = 1,
                     .D = 128,
                     .dtype = dtype,
                     .layout = Layout::kGaps,
                     .packed = {{40, 70}, {70, 40}}});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Layouts, Conformance, ::testing::ValuesIn(layout_cases()), case_name);

std::vector<AttentionCase> regime_cases() {
  std::vector<AttentionCase> cases;
  for (const DType dtype : kTypes) {
    for (const Regime regime : {Regime::kSharpLogits, Regime::kValueMean2, Regime::kScoreMean50,
                                Regime::kMaxInLastTile, Regime::kNormed, Regime::kZeroProbe})
      cases.push_back({.B = 2, .Tq = 150, .D = 128, .dtype = dtype, .regime = regime});
    for (const int64_t num_keys : {1, 2, 3})
      cases.push_back({.B = 32, .Tq = 4, .Tk = num_keys, .D = 128, .dtype = dtype});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Regimes, Conformance, ::testing::ValuesIn(regime_cases()), case_name);

}  // namespace
}  // namespace parallax::testing
