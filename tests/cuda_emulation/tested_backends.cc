// What tests/conformance tests here, and what every test of this program begins with.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <vector>

#include "cuda_emulation/device.h"
#include "support/attention_case.h"
#include "support/cuda_backends.h"

namespace parallax::testing {

const std::vector<TestedBackend>& tested_backends() { return cuda_backends(); }
const std::vector<TestedRowOps>& tested_row_ops() { return cuda_row_ops(); }

namespace {

/// Each test's schedules are drawn from the seed of the run, whichever tests ran before; a failure
/// prints it.
class SeededSchedules : public ::testing::EmptyTestEventListener {
  void OnTestStart(const ::testing::TestInfo& /*test*/) override {
    emulation::set_seed(test_seed());
  }
  void OnTestEnd(const ::testing::TestInfo& test) override {
    if (test.result()->Failed())
      std::printf("inputs and schedules: PLX_TEST_SEED=%llu\n",
                  static_cast<unsigned long long>(test_seed()));
  }
};

class Host : public ::testing::Environment {
  void SetUp() override {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
      GTEST_SKIP() << "the kernels are compiled for processors with AVX2 and FMA";
    ::testing::UnitTest::GetInstance()->listeners().Append(
        std::make_unique<SeededSchedules>().release());  // GoogleTest owns it
  }
};

[[maybe_unused]] const auto* const kHost = ::testing::AddGlobalTestEnvironment(new Host);

}  // namespace
}  // namespace parallax::testing
