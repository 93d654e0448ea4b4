// SPDX-License-Identifier: Apache-2.0
#include "cpu/backend.h"

#include <algorithm>
#include <string>

#include "core/env.h"
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

/// Keys that a late row of an average sequence sees.
int64_t keys_per_row(const BackwardArgs& args) {
  const bool packed = args.cu_seqlens_k.defined();
  const int64_t num_sequences = packed ? args.cu_seqlens_k.sizes[0] - 1 : 1;
  const int64_t num_keys = args.k.sizes[packed ? 0 : 1] / std::max<int64_t>(num_sequences, 1);
  return std::min(num_keys, args.options.window.value_or(num_keys));
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const InstructionSet& set) : set_(set) {}

  std::string_view name() const override { return "cpu"; }

  std::string description() const override {
    const bool has_matrix_unit = set_.bfloat16s->pack != nullptr;
    return std::string("tiled kernels on all cores, instruction set ") + set_.name +
           (has_matrix_unit ? std::string(" for bfloat16, ") + set_.floats->isa + " for the rest"
                            : "");
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
  Support supports(const MergeArgs& args) const override {
    return supports_tensor("merge", args.out);
  }

  void forward(const ForwardArgs& args) const override { cpu::forward(kernels(args.q), args); }
  void backward(const BackwardArgs& args) const override {
    const bool few_keys = keys_per_row(args) < set_.min_backward_keys;
    cpu::backward(few_keys ? *set_.floats : kernels(args.q), args);
  }
  void decode(const DecodeArgs& args) const override { cpu::decode(kernels(args.q), args); }
  void merge(const MergeArgs& args) const override { cpu::merge(args); }

 private:
  const Kernels& kernels(const ConstTensorView& q) const {
    return q.dtype == DType::kBFloat16 ? *set_.bfloat16s : *set_.floats;
  }

  InstructionSet set_;
};

/// The machine's best set, or the one that PLX_ISA names.
const InstructionSet& choose(const InstructionSetList& sets) {
  const std::string wanted = core::env_value(core::Env::kIsa);
  if (wanted.empty()) return sets.entries[0];
  std::string names;
  for (int idx = 0; idx < sets.count; ++idx) {
    if (wanted == sets.entries[idx].name) return sets.entries[idx];
    names.append(idx > 0 ? ", " : "").append(sets.entries[idx].name);
  }
  PLX_FAIL(core::env_name(core::Env::kIsa), " is '", wanted,
           "'; this machine and build have: ", names);
}

}  // namespace

std::unique_ptr<Backend> make_backend(const InstructionSet& set) {
  return std::make_unique<CpuBackend>(set);
}

const InstructionSet& instruction_set() {
  static const InstructionSet set = choose(usable_instruction_sets());
  return set;
}

const Backend& backend() {
  static const CpuBackend instance(instruction_set());
  return instance;
}

}  // namespace parallax::cpu
