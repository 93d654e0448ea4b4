// RMSNorm, rotary embedding and SwiGLU, forward and backward, on every instruction set here and on
// the CUDA device, against plain loops in float64 within the derived tolerance (docs/testing.md).
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/attention_case.h"
#include "support/row_case.h"

namespace parallax::testing {
namespace {

using Values = std::vector<double>;

constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr Layout kAllLayouts[] = {Layout::kContiguous, Layout::kPadded, Layout::kGaps,
                                  Layout::kHeadsFirst};

TEST(RowOps, NormOfAnySizeIsRight) {
  for (const int64_t dim : {1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 100, 128, 192, 1000})
    expect_norm_rope_conforms({.sizes = {5, dim}});
  expect_norm_rope_conforms({.sizes = {37}});
  expect_norm_rope_conforms({.sizes = {3, 700, 24}});  // several blocks of rows
  expect_norm_rope_conforms({.sizes = {2, 3, 2, 40000}});
}

/// Rows at the limits of what a warp and a block of a CUDA kernel hold, and more than one round of
/// rows in its blocks, whose last has fewer.
TEST(RowOps, SizesAtTheEdgesOfCudaBlocksAreRight) {
  for (const int64_t dim : {1023, 1024, 1025, 4096, 8192, 8193})
    expect_norm_rope_conforms({.sizes = {3, dim}});
  for (const int64_t dim : {510, 512, 514, 4096, 4098, 9000})
    expect_norm_rope_conforms({.sizes = {3, 2, dim}, .rotate = true});
  expect_norm_rope_conforms({.sizes = {2, 2, 2, 5000}, .norm = false, .rotate = true});
  expect_norm_rope_conforms({.sizes = {601, 2050}});
  expect_norm_rope_conforms({.sizes = {301, 8200}});
  expect_norm_rope_conforms({.sizes = {2, 130, 9, 512}, .rotate = true});
}

TEST(RowOps, RotationOfAnyEvenSizeIsRight) {
  for (const bool norm : {false, true})
    for (const int64_t dim : {2, 4, 6, 10, 12, 16, 30, 32, 34, 64, 128, 192})
      for (const int64_t heads : {1, 2, 6})
        expect_norm_rope_conforms({.sizes = {2, 5, heads, dim}, .norm = norm, .rotate = true});
  expect_norm_rope_conforms({.sizes = {7, 3, 8}, .rotate = true});
  expect_norm_rope_conforms({.sizes = {3, 300, 2, 64}, .rotate = true});
}

TEST(RowOps, EveryDTypeAndLayoutIsRight) {
  for (const DType dtype : kAllDTypes)
    for (const DType out_dtype : kAllDTypes)
      for (const DType gain_dtype : kAllDTypes)
        for (const Layout layout : kAllLayouts)
          for (const int64_t dim : {6, 64})
            for (const bool rotate : {false, true})
              expect_norm_rope_conforms({.sizes = {2, 9, 3, dim},
                                         .rotate = rotate,
                                         .dtype = dtype,
                                         .out_dtype = out_dtype,
                                         .other_dtype = gain_dtype,
                                         .layout = layout});
}

TEST(RowOps, ScalesFarFromOneAndZeroRowsAreRight) {
  for (const double scale : {0.0, 1e-12, 1e-3, 1e6, 1e15})
    expect_norm_rope_conforms({.sizes = {2, 3, 2, 20}, .rotate = true, .scale = scale});
}

/// Where a kernel's thread has no row, 0 over the root of 0 must not reach the gain's gradient.
TEST(RowOps, AnEpsOfZeroIsRight) {
  for (const bool rotate : {false, true})
    expect_norm_rope_conforms({.sizes = {5, 3, 24}, .rotate = rotate, .eps = 0.0});
}

TEST(RowOps, EmptyTensorsHaveAGradientOfZero) {
  const RowCase row_case{.sizes = {0, 2, 8}};
  for (const TestedRowOps& ops : tested_row_ops()) {
    const auto result = run_norm_rope(ops, row_case, make_norm_rope_inputs(row_case, 1));
    EXPECT_EQ(result.d_gain.values(), Values(8, 0.0)) << ops.name;
    run_swiglu(ops, row_case, make_swiglu_inputs(row_case, 1));
  }
}

TEST(RowOps, SwigluIsRight) {
  for (const DType dtype : kAllDTypes)
    for (const Layout layout : kAllLayouts)
      for (const int64_t dim : {1, 3, 16, 37, 512, 1030})
        for (const double scale : {1.0, 12.0})
          expect_swiglu_conforms(
              of_dtype({.sizes = {2, 3, dim}, .layout = layout, .scale = scale}, dtype));
  expect_swiglu_conforms({.sizes = {2, 3, 4, 24}, .layout = Layout::kHeadsFirst});
  expect_swiglu_conforms({.sizes = {200, 384}});
  expect_swiglu_conforms({.sizes = {5000}});
}

TEST(RowOps, SwigluOfMixedDTypesIsRight) {
  for (const DType dtype : kAllDTypes)
    for (const DType out_dtype : kAllDTypes)
      for (const DType up_dtype : kAllDTypes)
        for (const Layout layout : {Layout::kContiguous, Layout::kPadded})
          expect_swiglu_conforms({.sizes = {3, 2, 21},
                                  .dtype = dtype,
                                  .out_dtype = out_dtype,
                                  .other_dtype = up_dtype,
                                  .layout = layout});
}

TEST(RowOps, SwigluOfLargeGatesNeitherOverflowsNorVanishesEarly) {
  const RowCase row_case{.sizes = {8}};
  const SwigluInputs inputs{
      .gate = HostTensor::of(DType::kFloat32, {8}, {0, -0.0, -1e30, 1e30, -88, 88, -20, 20}),
      .up = HostTensor::of(DType::kFloat32, {8}, Values(8, 1.0)),
      .dy = HostTensor::of(DType::kFloat32, {8}, Values(8, 1.0))};
  for (const TestedRowOps& ops : tested_row_ops()) {
    const SwigluOutputs result = run_swiglu(ops, row_case, inputs);
    const Values y = true_swiglu(inputs), d_gate = true_swiglu_d_gate(inputs);
    for (int64_t i = 0; i < 8; ++i) {
      // |x| 2^-24 from rounding x log2(e), a few units more, and 0 for what is below 1e-36.
      const auto allowed = [](double value) { return std::abs(value) * 4e-6 + 1e-35; };
      const auto idx = static_cast<size_t>(i);
      EXPECT_NEAR(result.y.get(i), y[idx], allowed(y[idx])) << i;
      EXPECT_NEAR(result.d_gate.get(i), d_gate[idx], allowed(d_gate[idx])) << i;
    }
  }
}

TEST(RowOps, ANaNOrInfinityShowsInItsRowAndInNoOther) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  for (const TestedRowOps& ops : tested_row_ops())
    for (const double bad : {kNaN, std::numeric_limits<double>::infinity()})
      for (const int64_t dim : {12, 64}) {
        const RowCase row_case{.sizes = {3, 2, dim}, .rotate = true};
        NormRopeInputs inputs = make_norm_rope_inputs(row_case, 5);
        inputs.x.set(2 * dim + 3, bad);  // row 2
        const NormRopeOutputs result = run_norm_rope(ops, row_case, inputs);
        for (int64_t row = 0; row < 6; ++row) {
          EXPECT_EQ(std::isnan(result.y.get(row * dim + 3)), row == 2) << row;
          EXPECT_EQ(std::isnan(result.dx.get(row * dim + 3)), row == 2) << row;
        }
        EXPECT_TRUE(std::isnan(result.d_gain.get(3)));
        const RowCase flat{.sizes = {3, dim}};
        SwigluInputs gates = make_swiglu_inputs(flat, 5);
        gates.gate.set(3, kNaN);
        gates.up.set(5, bad);
        const SwigluOutputs glu = run_swiglu(ops, flat, gates);
        for (int64_t i = 0; i < 3 * dim; ++i) {
          EXPECT_EQ(std::isfinite(glu.y.get(i)), i != 3 && i != 5) << i;
          EXPECT_EQ(std::isfinite(glu.d_gate.get(i)), i != 3 && i != 5) << i;
          EXPECT_EQ(std::isfinite(glu.d_up.get(i)), i != 3) << i;
        }
      }
}

bool same_bits(const NormRopeOutputs& a, const NormRopeOutputs& b) {
  return a.y.same_bits(b.y) && a.dx.same_bits(b.dx) && a.d_gain.same_bits(b.d_gain);
}

TEST(RowOps, ARepeatHasTheSameBits) {
  for (const RowCase& row_case :
       {RowCase{.sizes = {601, 1100}}, RowCase{.sizes = {3, 70, 5, 128}, .rotate = true},
        RowCase{.sizes = {20, 9000}, .dtype = DType::kBFloat16}})
    for (const TestedRowOps& ops : tested_row_ops()) {
      const NormRopeInputs inputs = make_norm_rope_inputs(row_case, test_seed());
      const NormRopeOutputs first = run_norm_rope(ops, row_case, inputs);
      EXPECT_TRUE(same_bits(run_norm_rope(ops, row_case, inputs), first))
          << ops.name << ' ' << row_case.text();
    }
}

/// Rows 0 .. 3 of two tensors whose other rows differ, NaN in one of them.
TEST(RowOps, ARowsBitsDoNotDependOnOtherRows) {
  for (const int64_t dim : {24, 1100, 9000}) {
    const RowCase few{.sizes = {4, dim}}, many{.sizes = {300, dim}};
    NormRopeInputs of_few = make_norm_rope_inputs(few, 7), of_many = make_norm_rope_inputs(many, 8);
    of_many.gain = of_few.gain;
    for (int64_t i = 0; i < 4 * dim; ++i) {
      of_many.x.set(i, of_few.x.get(i));
      of_many.dy.set(i, of_few.dy.get(i));
    }
    of_many.x.set(200 * dim, std::numeric_limits<double>::quiet_NaN());
    for (const TestedRowOps& ops : tested_row_ops()) {
      const NormRopeOutputs a = run_norm_rope(ops, few, of_few);
      const NormRopeOutputs b = run_norm_rope(ops, many, of_many);
      for (int64_t i = 0; i < 4 * dim; ++i) {
        ASSERT_EQ(a.y.get(i), b.y.get(i)) << ops.name << ' ' << i;
        ASSERT_EQ(a.dx.get(i), b.dx.get(i)) << ops.name << ' ' << i;
      }
    }
  }
}

}  // namespace
}  // namespace parallax::testing
