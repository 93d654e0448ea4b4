// The CUDA devices of this machine, asked once.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "parallax/backend.h"

namespace parallax::cuda {

struct DeviceInfo {
  std::string name;
  int compute_capability;  // 10 major + minor: 90
  int num_multiprocessors;
  int64_t l2_bytes;
};

/// 0 without a device or a driver.
int num_devices();

/// Throws Error if there is no such device.
const DeviceInfo& device_info(int index);

/// The oldest devices that the plain kernels are for, and no upper limit, as compute capabilities.
inline constexpr int kMinCapability = 80;
inline constexpr int kAnyCapability = 1000;

/// Whether `device` is one of CUDA, there, and of a compute capability in the range; `user` begins
/// the reason.
Support supports_device(const std::string& user, const Device& device, int min_capability,
                        int max_capability = kAnyCapability);

/// Makes a device current for its lifetime.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  int index_;
};

}  // namespace parallax::cuda
