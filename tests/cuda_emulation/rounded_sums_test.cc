// The forward kernel that divides by sums of rounded weights (docs/math.md).
// SPDX-License-Identifier: Apache-2.0
#include "cuda_emulation/rounded_sums.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cuda/backend.h"
#include "cuda/sm90/forward/forward.h"
#include "cuda/sm90/schedule.h"
#include "support/attention_case.h"

namespace parallax::testing {
namespace {

class RoundedSums final : public Backend {
 public:
  std::string_view name() const override { return "rounded_sums"; }
  std::string description() const override { return "forward with sums of rounded weights"; }
  DeviceType device_type() const override { return DeviceType::kCuda; }
  Support supports(const ForwardArgs& args) const override {
    return cuda::sm90_backend().supports(args);
  }
  Support supports(const BackwardArgs&) const override { return Support::no("forward only"); }
  Support supports(const DecodeArgs&) const override { return Support::no("forward only"); }
  Support supports(const MergeArgs&) const override { return Support::no("forward only"); }
  int64_t workspace_bytes(const ForwardArgs& args) const override {
    return cuda::sm90_backend().workspace_bytes(args);
  }
  void forward(const ForwardArgs& args) const override {
    const cuda::ForwardCall call = cuda::make_call(args);
    const cuda::sm90::ForwardInstance& instance = cuda::sm90::kRoundedSumsInstance;
    const auto schedule = cuda::sm90::make_schedule(call.attention, cuda::sm90::TileRows::kQueries,
                                                    instance.tile.queries, /*l2_bytes=*/50 << 20);
    instance.launch(call, schedule, args.execution.workspace, /*num_blocks=*/4, nullptr);
  }
  void backward(const BackwardArgs&) const override {}
  void decode(const DecodeArgs&) const override {}
  void merge(const MergeArgs&) const override {}
};

/// Root mean square of the error over that of the truth.
double relative_error(const HostTensor& result, const std::vector<double>& truth) {
  double error = 0.0, size = 0.0;
  for (int64_t idx = 0; idx < result.num_elements(); ++idx) {
    const double value = truth[static_cast<size_t>(idx)];
    error += std::pow(result.get(idx) - value, 2);
    size += value * value;
  }
  return std::sqrt(error / size);
}

TEST(RoundedSums, MakeTheOutputMoreExactAndLeaveTheStatistics) {
  // Values with a mean make the errors of the weights add up unless their sum has them too.
  const AttentionInputs inputs(
      {.Tq = 400, .dtype = DType::kBFloat16, .regime = Regime::kValueMean2}, test_seed());
  const ForwardValues truth = true_forward(inputs.problem);
  const ForwardTensors rounded = run_forward(RoundedSums(), inputs);
  const ForwardTensors usual = run_forward(cuda::sm90_backend(), inputs);
  EXPECT_LT(relative_error(rounded.out_softmax, truth.out_softmax),
            relative_error(usual.out_softmax, truth.out_softmax));
  EXPECT_LT(relative_error(rounded.out, truth.out), 0.9 * relative_error(usual.out, truth.out));
  EXPECT_TRUE(rounded.lse.same_bits(usual.lse));
  EXPECT_TRUE(rounded.t_mean.same_bits(usual.t_mean));
}

}  // namespace
}  // namespace parallax::testing
