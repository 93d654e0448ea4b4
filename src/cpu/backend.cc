// SPDX-License-Identifier: Apache-2.0
#include "cpu/backend.h"

#include <string>
#include <vector>

#include "cpu/attention.h"

namespace parallax::cpu {
namespace {

Support supports_tensor(const char* call, const ConstTensorView& q) {
  if (q.device.type != DeviceType::kCpu)
    return Support::no(std::string("cpu ") + call + ": the tensors are not in CPU memory");
  if (q.dtype != DType::kFloat32 && q.dtype != DType::kBFloat16 && q.dtype != DType::kFloat16)
    return Support::no(std::string("cpu ") + call + ": dtype " + std::string(name(q.dtype)) +
                       " is not built (built: float32, bfloat16, float16)");
  return Support::yes();
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const Kernels& kernels) : kernels_(kernels) {}

  std::string_view name() const override { return "cpu"; }

  std::string description() const override {
    return std::string("tiled fp32 kernels on all cores, instruction set ") + kernels_.isa;
  }

  Support supports(const ForwardArgs& args) const override {
    return supports_tensor("forward", args.q);
  }
  Support supports(const BackwardArgs& args) const override {
    return supports_tensor("backward", args.q);
  }
  Support supports(const DecodeArgs& args) const override {
    return supports_tensor("decode", args.q);
  }
  Support supports(const MergeArgs&) const override {
    return Support::no(
        "cpu merge: not built; it reads and writes each number once, so the reference "
        "backend's loop is enough");
  }

  void forward(const ForwardArgs& args) const override { cpu::forward(kernels_, args); }
  void backward(const BackwardArgs& args) const override { cpu::backward(kernels_, args); }
  void decode(const DecodeArgs& args) const override { cpu::decode(kernels_, args); }
  void merge(const MergeArgs& args) const override { PLX_FAIL(supports(args).reason); }

 private:
  const Kernels& kernels_;
};

}  // namespace

std::span<const Backend* const> backends_by_isa() {
  static const std::vector<CpuBackend> instances = [] {
    std::vector<CpuBackend> list;
    const KernelList kernels = usable_kernels();
    for (int idx = 0; idx < kernels.count; ++idx) list.emplace_back(*kernels.entries[idx]);
    return list;
  }();
  static const std::vector<const Backend*> pointers = [] {
    std::vector<const Backend*> list;
    for (const CpuBackend& instance : instances) list.push_back(&instance);
    return list;
  }();
  return pointers;
}

const Backend& backend() { return *backends_by_isa().front(); }

}  // namespace parallax::cpu
