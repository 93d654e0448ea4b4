// The Hopper forward kernel on an emulated device, against the float64 reference.
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cuda/sm90/forward/forward.h"
#include "cuda_emulation/device.h"
#include "support/attention_case.h"
#include "support/tolerance.h"

namespace parallax::testing {
namespace {

enum class Outputs { kTraining, kInference };

ForwardTensors run_emulated(const AttentionInputs& inputs, Outputs outputs) {
  const std::vector<int64_t> rows = inputs.q.sizes();
  std::vector<int64_t> stats(rows.begin(), rows.end() - 1);
  std::swap(stats[stats.size() - 1], stats[stats.size() - 2]);
  ForwardTensors result{.out = HostTensor(inputs.description.dtype, rows),
                        .out_softmax = {},
                        .lse = {},
                        .t_mean = {}};
  if (outputs == Outputs::kTraining)
    result = poisoned_outputs(inputs.description.dtype, Layout::kContiguous, rows, stats);
  const cuda::ForwardCall call =
      cuda::make_call(ForwardArgs{.q = inputs.q.view(),
                                  .r = inputs.r.view(),
                                  .k = inputs.k.view(),
                                  .v = inputs.v.view(),
                                  .cu_seqlens_q = inputs.cu_seqlens_q.view(),
                                  .cu_seqlens_k = inputs.cu_seqlens_k.view(),
                                  .options = inputs.problem.options,
                                  .out = result.out.view(),
                                  .out_softmax = result.out_softmax.view(),
                                  .lse = result.lse.view(),
                                  .t_mean = result.t_mean.view()});
  const Support support = cuda::sm90::supports_forward(call);
  EXPECT_TRUE(support.ok) << support.reason;
  if (!support.ok) return result;
  std::vector<uint32_t> workspace(
      static_cast<size_t>(cuda::sm90::forward_workspace_bytes(call)) / 4, 0xffffffffu);
  const cuda::DeviceInfo device{
      .name = "emulated", .compute_capability = 90, .num_multiprocessors = 3, .l2_bytes = 50 << 20};
  cuda::sm90::launch_forward(call, device, workspace.data(), nullptr);
  expect_guards_intact(result);
  return result;
}

class EmulatedForward : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(EmulatedForward, EqualsTheReference) {
  const uint64_t seed = test_seed();
  const AttentionInputs inputs(GetParam(), seed);
  emulation::set_seed(static_cast<unsigned>(seed));
  const ForwardTensors result = run_emulated(inputs, Outputs::kTraining);
  const ForwardValues truth = true_forward(inputs.problem);
  const std::string context = GetParam().name() + ", PLX_TEST_SEED=" + std::to_string(seed);
  expect_right([&](int num_orders) {
    const ForwardErrors plain = plain_errors(inputs.problem, truth, GetParam().dtype, num_orders);
    std::vector<Verdict> verdicts;
    judge_forward(GetParam().dtype, values_of(result), truth, plain, context, verdicts);
    return verdicts;
  });
  // Another order of threads and copies, and without the outputs that training saves.
  emulation::set_seed(static_cast<unsigned>(seed) + 1);
  EXPECT_TRUE(run_emulated(inputs, Outputs::kInference).out.same_bits(result.out)) << context;
}

std::string case_name(const ::testing::TestParamInfo<AttentionCase>& instance) {
  return instance.param.name();
}

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> list;
  const auto bf16 = DType::kBFloat16, fp16 = DType::kFloat16;
  for (const int64_t D : {64, 96, 128, 192, 256})
    for (const DType dtype : {bf16, fp16})
      list.push_back({.Tq = 70, .Hq = 2, .Hkv = 1, .D = D, .dtype = dtype});
  for (const int64_t T : {1, 63, 64, 65, 127, 129, 200})
    list.push_back({.B = 2, .Tq = T, .Hq = 2, .Hkv = 2, .D = 64, .dtype = bf16});
  for (const int64_t D : {64, 128}) {
    list.push_back({.Tq = 130, .D = D, .dtype = bf16, .mask = Mask::kFull});
    list.push_back({.Tq = 40, .Tk = 300, .Hq = 3, .Hkv = 1, .D = D, .dtype = bf16});
    list.push_back({.Tq = 170, .Tk = 40, .D = D, .dtype = bf16});
    for (const int64_t window : {1, 50})
      list.push_back({.Tq = 300, .D = D, .dtype = bf16, .window = window});
    list.push_back({.Tq = 40, .Tk = 400, .D = D, .dtype = bf16, .window = 130});
    list.push_back(
        {.Hq = 4, .Hkv = 2, .D = D, .dtype = bf16, .packed = {{15, 15}, {0, 0}, {130, 130}}});
    list.push_back({.Hq = 3,
                    .D = D,
                    .dtype = bf16,
                    .window = 30,
                    .packed = {{0, 7}, {5, 70}, {70, 5}, {33, 0}, {64, 165}}});
    for (const Regime regime : {Regime::kSharpLogits, Regime::kValueMean2, Regime::kScoreMean50,
                                Regime::kMaxInLastTile, Regime::kNormed, Regime::kZeroProbe})
      list.push_back({.Tq = 300, .D = D, .dtype = D == 64 ? fp16 : bf16, .regime = regime});
    list.push_back({.B = 3, .Tq = 4, .Tk = 1, .D = D, .dtype = bf16, .mask = Mask::kFull});
    list.push_back({.Tq = 600, .Hq = 2, .Hkv = 1, .D = D, .dtype = bf16});
  }
  return list;
}
INSTANTIATE_TEST_SUITE_P(Cases, EmulatedForward, ::testing::ValuesIn(cases()), case_name);

// A NaN or an infinity in v reaches the queries that see its key, in its columns, and changes no
// bit elsewhere; the last key holds nothing but NaN.
TEST(EmulatedForwardHiddenKeys, ChangeNoBit) {
  for (const int64_t D : {64, 128}) {
    const AttentionCase c{.Tq = 200, .D = D, .dtype = DType::kBFloat16, .window = 120};
    const uint64_t seed = test_seed();
    const AttentionInputs clean(c, seed);
    AttentionInputs dirty(c, seed);
    constexpr int64_t kBadKey = 130, kLastKey = 199;
    for (int64_t d = 0; d < D; d += 3)
      dirty.v.set(kBadKey * D + d, d % 2 == 0 ? std::numeric_limits<double>::infinity() : NAN);
    for (int64_t d = 0; d < D; ++d) {
      dirty.k.set(kLastKey * D + d, NAN);
      dirty.v.set(kLastKey * D + d, NAN);
    }
    const HostTensor expected = run_emulated(clean, Outputs::kTraining).out;
    const HostTensor found = run_emulated(dirty, Outputs::kTraining).out;
    for (int64_t query = 0; query < c.Tq; ++query)
      for (int64_t d = 0; d < D; ++d) {
        const bool sees = query == kLastKey || (query >= kBadKey && d % 3 == 0);
        const double value = found.get(query * D + d);
        ASSERT_EQ(std::isfinite(value), !sees) << "query " << query << " d " << d;
        if (!sees) {
          ASSERT_EQ(value, expected.get(query * D + d)) << "query " << query << " d " << d;
        }
      }
  }
}

}  // namespace
}  // namespace parallax::testing
