// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_info.h"

#include <vector>

#include "cuda/check.h"

namespace parallax::cuda {
namespace {

DeviceInfo ask(int index) {
  cudaDeviceProp properties;
  PLX_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  return {.name = properties.name,
          .compute_capability = 10 * properties.major + properties.minor,
          .num_multiprocessors = properties.multiProcessorCount,
          .l2_bytes = properties.l2CacheSize};
}

const std::vector<DeviceInfo>& devices() {
  static const std::vector<DeviceInfo> list = [] {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // no driver is no error of the next call
      count = 0;
    }
    std::vector<DeviceInfo> infos;
    for (int index = 0; index < count; ++index) infos.push_back(ask(index));
    return infos;
  }();
  return list;
}

}  // namespace

int num_devices() { return static_cast<int>(devices().size()); }

const DeviceInfo& device_info(int index) {
  PLX_CHECK(index >= 0 && index < num_devices(), "CUDA device ", index, " does not exist; there ",
            num_devices() == 1 ? "is 1" : "are " + std::to_string(num_devices()));
  return devices()[static_cast<size_t>(index)];
}

DeviceGuard::DeviceGuard(int index) : index_(index) {
  PLX_CUDA_CHECK(cudaGetDevice(&previous_));
  if (index_ != previous_) PLX_CUDA_CHECK(cudaSetDevice(index_));
}

DeviceGuard::~DeviceGuard() {
  if (index_ != previous_) static_cast<void>(cudaSetDevice(previous_));
}

}  // namespace parallax::cuda
