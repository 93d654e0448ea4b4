// The environment variables of the library: the only place that reads them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace parallax::core {

/// One row per variable; the order is that of env_variables().
enum class Env {
  kBackend,
  kIsa,
  kLog,
  kNumThreads,
  kRank,
  kWorldSize,
  kLocalRank,
  kMasterAddress,
  kMasterPort,
  kAgentStore,
  kRestartCount,
  kLauncherPipe
};

struct EnvVariable {
  Env id;
  const char* name;
  std::string_view description;
};

/// Every variable that the library reads, for help texts.
std::span<const EnvVariable> env_variables();

const char* env_name(Env variable);

/// The variable's present value; empty when it is unset.
std::string env_value(Env variable);

}  // namespace parallax::core
