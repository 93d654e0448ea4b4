// Calls that the Hopper kernels' own tests share.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/backend.h"
#include "support/attention_case.h"

namespace parallax::testing {

inline constexpr DType kBf16 = DType::kBFloat16, kFp16 = DType::kFloat16;

inline const Backend& hopper() { return cuda::sm90_backend(); }

inline std::string case_name(const ::testing::TestParamInfo<AttentionCase>& instance) {
  return instance.param.name();
}

/// Lengths and masks at the edges of tiles and steps.
inline std::vector<AttentionCase> shape_cases(int64_t D) {
  std::vector<AttentionCase> cases;
  for (const int64_t T : {1, 63, 64, 65, 127, 129, 200})
    cases.push_back({.B = 2, .Tq = T, .Hq = 2, .Hkv = 2, .D = D, .dtype = kBf16});
  cases.push_back({.Tq = 130, .D = D, .dtype = kBf16, .mask = Mask::kFull});
  cases.push_back({.Tq = 40, .Tk = 300, .Hq = 3, .Hkv = 1, .D = D, .dtype = kBf16});
  cases.push_back({.Tq = 170, .Tk = 40, .D = D, .dtype = kBf16});  // 130 queries see nothing
  for (const int64_t window : {1, 50, 128})
    cases.push_back({.Tq = 300, .D = D, .dtype = kBf16, .window = window});
  cases.push_back({.Tq = 40, .Tk = 400, .D = D, .dtype = kBf16, .window = 130});
  cases.push_back({.B = 3, .Tq = 4, .Tk = 1, .D = D, .dtype = kBf16, .mask = Mask::kFull});
  cases.push_back({.Tq = 600, .Hq = 2, .Hkv = 1, .D = D, .dtype = kBf16});
  cases.push_back({.Hq = 4,
                   .Hkv = 2,
                   .D = D,
                   .dtype = kBf16,
                   .packed = {{15, 15}, {85, 85}, {0, 0}, {1, 1}, {130, 130}}});
  cases.push_back({.Hq = 3,
                   .D = D,
                   .dtype = kBf16,
                   .window = 30,
                   .packed = {{0, 7}, {5, 70}, {70, 5}, {33, 0}, {64, 165}, {0, 0}}});
  return cases;
}

inline std::vector<AttentionCase> regime_cases(int64_t D) {
  std::vector<AttentionCase> cases;
  for (const Regime regime : {Regime::kSharpLogits, Regime::kValueMean2, Regime::kMaxInLastTile,
                              Regime::kNormed, Regime::kZeroProbe})
    for (const DType dtype : {kBf16, kFp16})
      cases.push_back({.Tq = 250, .D = D, .dtype = dtype, .regime = regime});
  return cases;
}

}  // namespace parallax::testing
