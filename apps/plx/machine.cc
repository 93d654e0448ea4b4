// Reads /proc/cpuinfo and /proc/meminfo.
// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <string_view>

namespace parallax::plx {
namespace {

constexpr std::array<std::string_view, 14> kInstructionSets = {
    "sse4_2",   "avx",         "f16c",        "fma",      "avx2",     "avx512f", "avx512bw",
    "avx512vl", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd",   "sve"};

/// The value of the first "key : value" line; empty if there is none.
std::string find_value(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || !line.starts_with(key)) continue;
    if (line.find_first_not_of(" \t", key.size()) != colon) continue;
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "";
}

int64_t memory_value(std::string_view key) {
  std::istringstream value(find_value("/proc/meminfo", key));
  int64_t kib = 0;
  value >> kib;
  return kib * 1024;
}

int count_usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

}  // namespace

Machine read_machine() {
  Machine machine;
  machine.cpu_model = find_value("/proc/cpuinfo", "model name");
  if (machine.cpu_model.empty()) machine.cpu_model = "unknown";
  machine.num_cores = count_usable_cores();
  std::string flags = find_value("/proc/cpuinfo", "flags");
  if (flags.empty()) flags = find_value("/proc/cpuinfo", "Features");
  std::istringstream words(flags);
  for (std::string word; words >> word;) {
    if (std::ranges::find(kInstructionSets, word) != kInstructionSets.end()) {
      machine.instruction_sets.push_back(word);
    }
  }
  machine.memory_bytes = memory_value("MemTotal");
  machine.available_memory_bytes = memory_value("MemAvailable");
  return machine;
}

}  // namespace parallax::plx
