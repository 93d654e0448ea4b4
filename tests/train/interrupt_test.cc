// Ctrl-C and SIGTERM: the first is a request, the second ends the process.
// SPDX-License-Identifier: Apache-2.0
#include "train/interrupt.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace parallax::train {
namespace {

class InterruptTest : public testing::TestWithParam<int> {};

TEST_P(InterruptTest, TheFirstSignalIsOnlyNoted) {
  const InterruptScope scope;
  EXPECT_EQ(InterruptScope::received(), 0);
  std::raise(GetParam());
  EXPECT_EQ(InterruptScope::received(), GetParam());
}

TEST_P(InterruptTest, TheSecondEndsTheProcess) {
  const auto raise_twice = [] {
    const InterruptScope scope;
    std::raise(GetParam());
    std::raise(GetParam());
    std::_Exit(0);
  };
  EXPECT_EXIT(raise_twice(), testing::KilledBySignal(GetParam()), "");
}

TEST_P(InterruptTest, AfterwardsTheSignalIsHandledAsBefore) {
  const auto outer = std::signal(GetParam(), SIG_IGN);
  {
    const InterruptScope scope;
  }
  EXPECT_EQ(std::signal(GetParam(), outer), SIG_IGN);
}

INSTANTIATE_TEST_SUITE_P(Signals, InterruptTest, testing::Values(SIGINT, SIGTERM),
                         [](const auto& test) { return test.param == SIGINT ? "int" : "term"; });

}  // namespace
}  // namespace parallax::train
