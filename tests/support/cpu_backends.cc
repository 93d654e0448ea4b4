// SPDX-License-Identifier: Apache-2.0
#include "support/cpu_backends.h"

#include <memory>

#include "cpu/backend.h"

namespace parallax::cpu {
extern const Kernels kEmulatedAmxKernels;
}  // namespace parallax::cpu

namespace parallax::testing {

const std::vector<cpu::InstructionSet>& instruction_sets() {
  static const std::vector<cpu::InstructionSet> list = [] {
    const cpu::InstructionSetList usable = cpu::usable_instruction_sets();
    std::vector<cpu::InstructionSet> sets(usable.entries, usable.entries + usable.count);
    sets.push_back({.name = "amx emulated",
                    .floats = sets.back().floats,
                    .bfloat16s = &cpu::kEmulatedAmxKernels});
    return sets;
  }();
  return list;
}

const std::vector<const Backend*>& cpu_backends() {
  static const std::vector<std::unique_ptr<Backend>> owners = [] {
    std::vector<std::unique_ptr<Backend>> backends;
    for (const cpu::InstructionSet& set : instruction_sets())
      backends.push_back(cpu::make_backend(set));
    return backends;
  }();
  static const std::vector<const Backend*> list = [] {
    std::vector<const Backend*> pointers;
    for (const auto& owner : owners) pointers.push_back(owner.get());
    return pointers;
  }();
  return list;
}

}  // namespace parallax::testing
