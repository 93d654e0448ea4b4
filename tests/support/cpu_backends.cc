// SPDX-License-Identifier: Apache-2.0
#include "support/cpu_backends.h"

#include <algorithm>
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
    for (int idx = 0; idx < usable.count; ++idx) {
      if (usable.entries[idx].min_backward_keys == 0) continue;
      sets.push_back(usable.entries[idx]);  // so that short cases reach its own backward too
      sets.back().min_backward_keys = 0;
    }
    sets.push_back({.name = "amx emulated",
                    .floats = usable.entries[usable.count - 1].floats,
                    .bfloat16s = &cpu::kEmulatedAmxKernels,
                    .min_backward_keys = 0});
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

const std::vector<TestedRowOps>& cpu_row_ops() {
  static const std::vector<TestedRowOps> list = [] {
    std::vector<TestedRowOps> result;
    for (const cpu::InstructionSet& set : instruction_sets()) {
      const auto is_listed = [&](const TestedRowOps& ops) { return ops.kernels == set.floats; };
      if (std::none_of(result.begin(), result.end(), is_listed))
        result.push_back({set.floats->isa, set.floats});
    }
    return result;
  }();
  return list;
}

}  // namespace parallax::testing
