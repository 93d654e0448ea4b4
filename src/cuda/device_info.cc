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

Support supports_device(const std::string& user, const Device& device, int min_capability,
                        int max_capability) {
  if (device.type != DeviceType::kCuda)
    return Support::no(user + ": the tensors are not in CUDA memory");
  if (num_devices() == 0) return Support::no(user + ": this machine has no CUDA device");
  const DeviceInfo& info = device_info(device.index);
  if (info.compute_capability < min_capability || info.compute_capability > max_capability)
    return Support::no(
        user + ": " + info.name + " has compute capability " +
        std::to_string(info.compute_capability / 10) + "." +
        std::to_string(info.compute_capability % 10) +
        (min_capability == max_capability ? "; it must be " : "; it must be at least ") +
        std::to_string(min_capability / 10) + "." + std::to_string(min_capability % 10));
  return Support::yes();
}

DeviceGuard::DeviceGuard(int index) : index_(index) {
  PLX_CUDA_CHECK(cudaGetDevice(&previous_));
  if (index_ != previous_) PLX_CUDA_CHECK(cudaSetDevice(index_));
}

DeviceGuard::~DeviceGuard() {
  if (index_ != previous_) static_cast<void>(cudaSetDevice(previous_));
}

}  // namespace parallax::cuda
