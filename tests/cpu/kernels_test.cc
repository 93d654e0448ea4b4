// Parts of the CPU kernels that a whole call shows only indirectly, on every instruction set here.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "support/attention_case.h"
#include "support/cpu_backends.h"
#include "support/tolerance.h"

namespace parallax::testing {
namespace {

std::vector<const cpu::Kernels*> all_kernels() {
  std::vector<const cpu::Kernels*> kernels;
  for (const cpu::InstructionSet& set : instruction_sets()) kernels.push_back(set.bfloat16s);
  return kernels;
}

float exponential(const cpu::Kernels& kernels, float x) {
  float y = 0.0f;
  kernels.exponential(&x, &y, 1);
  return y;
}

TEST(CpuKernels, ScalarIsAlwaysUsable) {
  const cpu::InstructionSetList sets = cpu::usable_instruction_sets();
  EXPECT_STREQ(sets.entries[sets.count - 1].name, "scalar");
}

TEST(CpuKernels, ExponentialIsWithinTheErrorOfItsArgumentsRounding) {
  for (const cpu::Kernels* kernels : all_kernels()) {
    for (float x = -87.0f; x <= 0.0f; x += 0.0137f) {
      const double truth = std::exp(static_cast<double>(x));
      // x log2(e) is rounded once, by at most 2^-24 of itself, and its constant by 2^-26; 1.5 ulp
      // for the polynomial and the product.
      const double allowed = truth * std::abs(static_cast<double>(x)) * (0x1p-24 + 0x1p-26) +
                             1.5 * unit_in_last_place(DType::kFloat32, truth);
      EXPECT_LE(std::abs(static_cast<double>(exponential(*kernels, x)) - truth), allowed)
          << kernels->isa << " at " << x;
    }
  }
}

TEST(CpuKernels, ExponentialOfSpecialValues) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const cpu::Kernels* kernels : all_kernels()) {
    EXPECT_EQ(exponential(*kernels, 0.0f), 1.0f);
    EXPECT_EQ(exponential(*kernels, -0.0f), 1.0f);
    EXPECT_EQ(exponential(*kernels, -88.0f), 0.0f);
    EXPECT_EQ(exponential(*kernels, -1e30f), 0.0f);
    EXPECT_EQ(exponential(*kernels, -kInfinity), 0.0f);
    EXPECT_TRUE(std::isnan(exponential(*kernels, std::numeric_limits<float>::quiet_NaN())));
  }
}

/// All finite values of a 16-bit type, each the value of the only key of a sequence: out = v makes
/// the trip through the kernels' own conversions and must come back unchanged.
void expect_round_trip(DType dtype) {
  std::vector<double> values;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    float value = 0.0f;
    if (dtype == DType::kBFloat16) {
      BFloat16 typed;
      typed.bits = half;
      value = typed;
    } else {
      Float16 typed;
      typed.bits = half;
      value = typed;
    }
    values.push_back(std::isfinite(value) ? static_cast<double>(value) : 0.0);
  }
  AttentionInputs inputs({.B = 256, .Tq = 1, .D = 256, .dtype = dtype}, 1);
  inputs.v = HostTensor::of(dtype, {256, 1, 1, 256}, values);
  for (const Backend* backend : cpu_backends()) {
    const ForwardTensors result = run_forward(*backend, inputs);
    // Equal as numbers, so all bits but the sign of a zero, which 0 + -0 loses.
    EXPECT_TRUE(result.out.values() == inputs.v.values()) << backend->description();
    EXPECT_TRUE(result.out_softmax.values() == inputs.v.values()) << backend->description();
  }
}

TEST(CpuKernels, EveryBFloat16SurvivesLoadAndStore) { expect_round_trip(DType::kBFloat16); }
TEST(CpuKernels, EveryFloat16SurvivesLoadAndStore) { expect_round_trip(DType::kFloat16); }

/// Two keys of equal weight: out_softmax is the mean of two neighbours, a tie, or near one; with
/// v = x + (1 +- e) / 2 ulp in fp32 the store must round as parallax/dtype.h does.
void expect_rounding(DType dtype) {
  std::mt19937_64 random(7);
  AttentionInputs inputs({.B = 64,
                          .Tq = 1,
                          .Tk = 2,
                          .D = 64,
                          .dtype = dtype,
                          .mask = Mask::kFull,
                          .regime = Regime::kZeroProbe},
                         3);
  inputs.q = HostTensor::of(dtype, {64, 1, 1, 64}, std::vector<double>(64 * 64, 0.0));
  std::uniform_int_distribution<int> exponent(-24, 10), steps(0, 3);
  std::vector<double> v, mean(64 * 64);
  for (size_t b = 0; b < 64; ++b) {
    std::vector<double> first(64), second(64);
    for (size_t d = 0; d < 64; ++d) {
      first[d] = rounded(dtype, std::ldexp(normal_values(1, random)[0], exponent(random)));
      second[d] = rounded(dtype, first[d] + steps(random) * unit_in_last_place(dtype, first[d]));
      mean[b * 64 + d] = rounded(dtype, (first[d] + second[d]) / 2);
    }
    v.insert(v.end(), first.begin(), first.end());
    v.insert(v.end(), second.begin(), second.end());
  }
  inputs.v = HostTensor::of(dtype, {64, 2, 1, 64}, v);
  for (const Backend* backend : cpu_backends())
    EXPECT_EQ(run_forward(*backend, inputs).out_softmax.values(), mean) << backend->description();
}

TEST(CpuKernels, StoresRoundTiesToEvenInBFloat16) { expect_rounding(DType::kBFloat16); }
TEST(CpuKernels, StoresRoundTiesToEvenInFloat16) { expect_rounding(DType::kFloat16); }

TEST(CpuBackend, RefusesFloat64WithAReason) {
  ForwardArgs args;
  args.q.dtype = DType::kFloat64;
  const Support support = cpu::backend().supports(args);
  EXPECT_FALSE(support.ok);
  EXPECT_NE(support.reason.find("float64"), std::string::npos) << support.reason;
}

TEST(CpuBackend, RefusesTensorsOfAnotherDevice) {
  ForwardArgs args;
  args.q.device.type = DeviceType::kCuda;
  EXPECT_FALSE(cpu::backend().supports(args).ok);
}

}  // namespace
}  // namespace parallax::testing
