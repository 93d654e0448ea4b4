// SPDX-License-Identifier: Apache-2.0
#include "core/env.h"

#include <array>
#include <cstdlib>

namespace parallax::core {
namespace {

constexpr std::array kVariables = {
    EnvVariable{Env::kBackend, "PLX_BACKEND",
                "name of the backend that every call must use; default: the fastest that can"},
    EnvVariable{Env::kIsa, "PLX_ISA",
                "instruction set of the cpu backend, scalar, avx2, avx512, avx512_bf16 or amx; "
                "default: the best of this machine"},
    EnvVariable{Env::kLog, "PLX_LOG",
                "comma-separated topics to print on stderr: dispatch (which backend ran, and why)"},
    EnvVariable{
        Env::kNumThreads, "PLX_NUM_THREADS",
        "threads of the library's own pool and of all of plx, and how many of Torch's threads the "
        "Torch ops take at most; default: the cores this process may use (Torch: Torch's choice)"},
    EnvVariable{Env::kRank, "RANK",
                "set by torchrun: which of the processes that train one model this is, from 0"},
    EnvVariable{Env::kWorldSize, "WORLD_SIZE", "set by torchrun: how many there are"},
    EnvVariable{Env::kLocalRank, "LOCAL_RANK",
                "set by torchrun: which of those on this machine this is; it takes that GPU"},
    EnvVariable{Env::kMasterAddress, "MASTER_ADDR",
                "set by torchrun: the machine where the processes find each other"},
    EnvVariable{Env::kMasterPort, "MASTER_PORT", "set by torchrun: the TCP port there"},
    EnvVariable{Env::kAgentStore, "TORCHELASTIC_USE_AGENT_STORE",
                "set by torchrun: True where a launcher listens at that port, not process 0"},
    EnvVariable{Env::kRestartCount, "TORCHELASTIC_RESTART_COUNT",
                "set by torchrun: how often the processes were started again"},
    EnvVariable{Env::kLauncherPipe, "PLX_LAUNCHER_PIPE",
                "set by plx train --processes: the descriptor of a pipe that ends with it"},
};

constexpr bool rows_follow_the_enum() {
  for (size_t row = 0; row < kVariables.size(); ++row)
    if (static_cast<size_t>(kVariables[row].id) != row) return false;
  return true;
}
static_assert(rows_follow_the_enum());

}  // namespace

std::span<const EnvVariable> env_variables() { return kVariables; }

const char* env_name(Env variable) { return kVariables[static_cast<size_t>(variable)].name; }

std::string env_value(Env variable) {
  const char* value = std::getenv(env_name(variable));
  return value != nullptr ? value : "";
}

}  // namespace parallax::core
