// SPDX-License-Identifier: Apache-2.0
#include "support/placement.h"

#include <gtest/gtest.h>

#include "core/validate.h"

#ifdef PLX_CUDA
#include <cuda_runtime.h>

#include "cuda/check.h"
#endif

namespace parallax::testing {

#ifdef PLX_CUDA

/// Copies of whole storages, guard bytes included, on device 0.
class Placement::DeviceTensors {
 public:
  ~DeviceTensors() {
    for (const Copy& copy : copies_) cudaFree(copy.device);
    cudaFree(workspace_);
  }

  /// `target`: where the bytes go back to; null for an input.
  void* copy(const HostTensor& tensor, HostTensor* target) {
    const std::span<const std::byte> bytes = tensor.storage();
    Copy copy{.device = nullptr, .target = target};
    PLX_CUDA_CHECK(cudaMalloc(&copy.device, bytes.size()));
    PLX_CUDA_CHECK(cudaMemcpy(copy.device, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    copies_.push_back(copy);
    return copy.device;
  }

  void* workspace(int64_t bytes) {
    if (bytes == 0) return nullptr;
    PLX_CUDA_CHECK(cudaMalloc(&workspace_, static_cast<size_t>(bytes)));
    PLX_CUDA_CHECK(cudaMemset(workspace_, 0xff, static_cast<size_t>(bytes)));
    return workspace_;
  }

  void finish() {
    PLX_CUDA_CHECK(cudaDeviceSynchronize());
    for (const Copy& copy : copies_) {
      if (copy.target == nullptr) continue;
      const std::span<std::byte> bytes = copy.target->storage();
      PLX_CUDA_CHECK(cudaMemcpy(bytes.data(), copy.device, bytes.size(), cudaMemcpyDeviceToHost));
    }
  }

 private:
  struct Copy {
    void* device;
    HostTensor* target;
  };
  std::vector<Copy> copies_{};
  void* workspace_ = nullptr;
};

namespace {

template <typename View>
View moved(View view, std::span<const std::byte> storage, void* device) {
  const auto offset = static_cast<const std::byte*>(view.data) - storage.data();
  view.data = static_cast<std::byte*>(device) + offset;
  view.device = {DeviceType::kCuda, 0};
  return view;
}

}  // namespace

Placement::Placement(DeviceType device)
    : device_(device == DeviceType::kCuda ? std::make_unique<DeviceTensors>() : nullptr) {}

ConstTensorView Placement::input(const HostTensor& tensor) {
  if (device_ == nullptr || !tensor.defined()) return tensor.view();
  return moved(tensor.view(), tensor.storage(), device_->copy(tensor, nullptr));
}

TensorView Placement::output(HostTensor& tensor) {
  if (device_ == nullptr || !tensor.defined()) return tensor.view();
  return moved(tensor.view(), tensor.storage(), device_->copy(tensor, &tensor));
}

Execution Placement::execution(int64_t workspace_bytes) {
  if (device_ == nullptr) return {};
  return {.workspace = device_->workspace(workspace_bytes), .workspace_bytes = workspace_bytes};
}

void Placement::finish() {
  if (device_ != nullptr) device_->finish();
}

#else

class Placement::DeviceTensors {};

Placement::Placement(DeviceType /*device*/) {}
ConstTensorView Placement::input(const HostTensor& tensor) { return tensor.view(); }
TensorView Placement::output(HostTensor& tensor) { return tensor.view(); }
Execution Placement::execution(int64_t /*workspace_bytes*/) { return {}; }
void Placement::finish() {}

#endif

Placement::~Placement() = default;

namespace {

template <typename Args, typename Run>
void run_if_supported(const Backend& backend, Args& args, Placement& placement, const Run& run) {
  core::validate(args);
  const Support support = backend.supports(args);
  ASSERT_TRUE(support.ok) << support.reason;
  args.execution = placement.execution(backend.workspace_bytes(args));
  run();
  placement.finish();
}

}  // namespace

void run_placed(const Backend& backend, ForwardArgs args, Placement& placement) {
  run_if_supported(backend, args, placement, [&] { backend.forward(args); });
}
void run_placed(const Backend& backend, BackwardArgs args, Placement& placement) {
  run_if_supported(backend, args, placement, [&] { backend.backward(args); });
}
void run_placed(const Backend& backend, DecodeArgs args, Placement& placement) {
  run_if_supported(backend, args, placement, [&] { backend.decode(args); });
}

}  // namespace parallax::testing
