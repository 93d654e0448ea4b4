// A recording of steps by Torch's profiler: operators of the host, kernels of the GPU.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace parallax::train {

/// What a kernel, or a copy, took of the GPU's time in the recorded steps.
struct KernelTime {
  std::string name;
  int64_t num_calls = 0;
  double ms = 0;
};

class StepProfile {
 public:
  /// Steps of a call of Trainer::run() that come before, when caches and clocks are not settled,
  /// and steps that are recorded.
  static constexpr int64_t kWarmUpSteps = 10, kSteps = 3;

  /// `path`: the file to write, JSON in Chrome's trace format (for Perfetto or chrome://tracing).
  /// Throws if its folder does not exist.
  StepProfile(std::filesystem::path path, c10::Device device);
  /// Ends a recording that is under way, without a file.
  ~StepProfile();
  StepProfile(const StepProfile&) = delete;
  StepProfile& operator=(const StepProfile&) = delete;

  /// To be called before and after each step, which counts from 0 in this run. Throws if the file
  /// cannot be written.
  void before_step(int64_t step_idx);
  void after_step(int64_t step_idx);

  /// By kernel, the longest first; empty on a CPU and before the last recorded step.
  const std::vector<KernelTime>& kernels() const { return kernels_; }

 private:
  std::filesystem::path path_;
  c10::Device device_;
  bool is_recording_ = false;
  std::vector<KernelTime> kernels_;
};

}  // namespace parallax::train
