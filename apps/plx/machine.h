// The machine that the program runs on, as far as speed depends on it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace parallax::plx {

struct Machine {
  std::string cpu_model;
  int num_cores = 0;  ///< that this process may use
  /// The instruction sets that matter to attention and matrix products, as Linux names them.
  std::vector<std::string> instruction_sets;
  int64_t memory_bytes = 0, available_memory_bytes = 0;
};

/// From /proc; what cannot be read is "unknown", empty or 0.
Machine read_machine();

}  // namespace parallax::plx
