// SPDX-License-Identifier: Apache-2.0
#include "cuda/backend.h"

#include <cuda_runtime.h>

#include <string>

#include "cuda/call.h"
#include "cuda/device_info.h"
#include "cuda/portable/launch.h"
#include "cuda/sm90/backward/backward.h"
#include "cuda/sm90/forward/forward.h"

namespace parallax::cuda {
namespace {

cudaStream_t stream_of(const Execution& execution) {
  return static_cast<cudaStream_t>(execution.stream);
}

/// "NVIDIA H200", or why there is none.
std::string device_text() {
  if (num_devices() == 0) return "no CUDA device on this machine";
  std::string text = device_info(0).name;
  if (num_devices() > 1) text += " and " + std::to_string(num_devices() - 1) + " more";
  return text;
}

class Sm90Backend final : public Backend {
 public:
  std::string_view name() const override { return "cuda_sm90"; }
  std::string description() const override {
    return "Hopper kernels (wgmma, TMA), " + device_text();
  }
  DeviceType device_type() const override { return DeviceType::kCuda; }

  Support supports(const ForwardArgs& args) const override {
    const Support device = supports_device("cuda_sm90", args.q.device, 90, 90);
    return device.ok ? sm90::supports_forward(make_call(args)) : device;
  }
  Support supports(const BackwardArgs& args) const override {
    const Support device = supports_device("cuda_sm90", args.q.device, 90, 90);
    return device.ok ? sm90::supports_backward(make_call(args)) : device;
  }
  Support supports(const DecodeArgs&) const override { return not_built("decode"); }
  Support supports(const MergeArgs&) const override { return not_built("merge_states"); }

  int64_t workspace_bytes(const ForwardArgs& args) const override {
    return sm90::forward_workspace_bytes(make_call(args));
  }
  int64_t workspace_bytes(const BackwardArgs& args) const override {
    return sm90::backward_workspace_bytes(make_call(args));
  }

  void forward(const ForwardArgs& args) const override {
    const int device = args.q.device.index;
    const DeviceGuard guard(device);
    sm90::launch_forward(make_call(args), device_info(device), args.execution.workspace,
                         stream_of(args.execution));
  }
  void backward(const BackwardArgs& args) const override {
    const int device = args.q.device.index;
    const DeviceGuard guard(device);
    sm90::launch_backward(make_call(args), device_info(device), args.execution.workspace,
                          stream_of(args.execution));
  }
  void decode(const DecodeArgs&) const override { refuse("decode"); }
  void merge(const MergeArgs&) const override { refuse("merge_states"); }

 private:
  static Support not_built(const std::string& call) {
    return Support::no("cuda_sm90: " + call + " is not built (built: forward, backward)");
  }
  [[noreturn]] static void refuse(const std::string& call) { PLX_FAIL(not_built(call).reason); }
};

class PortableBackend final : public Backend {
 public:
  std::string_view name() const override { return "cuda_portable"; }
  std::string description() const override {
    return "plain kernels for any GPU since compute capability 8.0, " + device_text();
  }
  DeviceType device_type() const override { return DeviceType::kCuda; }

  Support supports(const ForwardArgs& args) const override { return supports_tensor(args.q); }
  Support supports(const BackwardArgs& args) const override { return supports_tensor(args.q); }
  Support supports(const DecodeArgs& args) const override { return supports_tensor(args.q); }
  Support supports(const MergeArgs& args) const override {
    if (args.partials.size() > size_t{portable::kMaxPartials})
      return Support::no("cuda_portable: " + std::to_string(args.partials.size()) +
                         " partials are not built (at most " +
                         std::to_string(portable::kMaxPartials) + ")");
    return supports_tensor(args.out);
  }

  int64_t workspace_bytes(const BackwardArgs& args) const override {
    return portable::backward_workspace_bytes(make_call(args));
  }
  int64_t workspace_bytes(const DecodeArgs& args) const override {
    return portable::decode_workspace_bytes(make_call(args));
  }

  void forward(const ForwardArgs& args) const override {
    const DeviceGuard guard(args.q.device.index);
    portable::launch_forward(make_call(args), stream_of(args.execution));
  }
  void backward(const BackwardArgs& args) const override {
    const DeviceGuard guard(args.q.device.index);
    portable::launch_backward(make_call(args), args.execution.workspace, stream_of(args.execution));
  }
  void decode(const DecodeArgs& args) const override {
    const DeviceGuard guard(args.q.device.index);
    portable::launch_decode(make_call(args), args.execution.workspace, stream_of(args.execution));
  }
  void merge(const MergeArgs& args) const override {
    const DeviceGuard guard(args.out.device.index);
    portable::launch_merge(args, stream_of(args.execution));
  }

 private:
  static Support supports_tensor(const ConstTensorView& tensor) {
    const Support device = supports_device("cuda_portable", tensor.device, kMinCapability);
    if (!device.ok) return device;
    if (tensor.dtype == DType::kFloat64)
      return Support::no(
          "cuda_portable: dtype float64 is not built (built: float32, bfloat16, float16)");
    return Support::yes();
  }
};

}  // namespace

const Backend& sm90_backend() {
  static const Sm90Backend instance;
  return instance;
}

const Backend& portable_backend() {
  static const PortableBackend instance;
  return instance;
}

}  // namespace parallax::cuda
