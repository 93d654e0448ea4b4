// SPDX-License-Identifier: Apache-2.0
#include "train/profile.h"

#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "parallax/error.h"

namespace parallax::train {
namespace {

namespace fs = std::filesystem;
namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

std::vector<KernelTime> kernel_times(const profiler::ProfilerResult& result) {
  std::map<std::string, KernelTime> by_name;
  for (const auto& event : result.events()) {
    if (event.deviceType() != c10::DeviceType::CUDA) continue;
    KernelTime& kernel = by_name[event.name()];
    kernel.name = event.name();
    ++kernel.num_calls;
    kernel.ms += 1e-6 * static_cast<double>(event.durationNs());
  }
  std::vector<KernelTime> kernels;
  for (auto& [name, kernel] : by_name) kernels.push_back(std::move(kernel));
  std::ranges::sort(kernels, std::greater(), &KernelTime::ms);
  return kernels;
}

void wait_for(c10::Device device) {
  if (!device.is_cuda()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeDevice(device.index());
}

}  // namespace

StepProfile::StepProfile(fs::path path, c10::Device device)
    : path_(std::move(path)), device_(device) {
  const fs::path folder = path_.has_parent_path() ? path_.parent_path() : fs::path(".");
  PLX_CHECK(fs::is_directory(folder), "the folder of the profile ", path_.string(),
            " does not exist");
}

StepProfile::~StepProfile() {
  if (!is_recording_) return;
  try {
    profiler::disableProfiler();
  } catch (...) {  // NOLINT: the run has failed already, and says why
  }
}

void StepProfile::before_step(int64_t step_idx) {
  if (step_idx != kWarmUpSteps) return;
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO,
                                                     /*report_input_shapes=*/true);
  std::set<ActivityType> activities = {ActivityType::CPU};
  if (device_.is_cuda()) activities.insert(ActivityType::CUDA);
  wait_for(device_);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  is_recording_ = true;
}

void StepProfile::after_step(int64_t step_idx) {
  if (!is_recording_ || step_idx + 1 != kWarmUpSteps + kSteps) return;
  wait_for(device_);
  is_recording_ = false;
  const auto result = profiler::disableProfiler();
  kernels_ = kernel_times(*result);
  const fs::path temporary = path_.string() + ".tmp.json";
  result->save(temporary.string());  // which says nothing of failures
  std::error_code error;
  fs::rename(temporary, path_, error);
  PLX_CHECK(!error, "cannot write the profile ", path_.string(), ": ", error.message());
}

}  // namespace parallax::train
