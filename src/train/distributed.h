// Ranks that are processes, found through torchrun's environment variables and joined by c10d: Gloo
// between CPUs, NCCL between GPUs.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <chrono>
#include <memory>
#include <string>

#include "optim/ranks.h"

namespace parallax::train {

/// This process among those that train one model.
struct RankPlace {
  int rank = 0, size = 1;
  int local_rank = 0;   ///< on this machine; also its GPU
  std::string address;  ///< where the ranks find each other
  int port = 0;
  bool has_launcher = false;  ///< a launcher listens there, not rank 0
  std::string attempt;        ///< tells restarts by the launcher apart
};

/// From RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without WORLD_SIZE, or where it
/// is 1, the process is alone. Throws if one of them is missing or no sensible number.
RankPlace rank_place();

/// A rank was lost: it ended, its connection broke, or it kept the others waiting for too long.
/// What was to be exchanged is not usable then.
struct LostRank : Error {
  using Error::Error;
};

/// Joins the ranks of `place`, whose models are on `device`; the base class if there is one rank.
/// Every wait, here and later, ends with LostRank after `timeout`, or kSignalGrace after SIGINT or
/// SIGTERM. Throws Error if this build cannot connect ranks on such a device.
std::shared_ptr<optim::Ranks> join_ranks(const RankPlace& place, torch::Device device,
                                         std::chrono::seconds timeout);

/// Where the ranks of this machine find each other for as long as it lives.
struct Meeting {
  std::shared_ptr<void> server;
  int port = 0;
};
/// Listens on a free port.
Meeting open_meeting();

/// How long a rank still waits for the others once it is told to stop: they finish their step, or
/// they are lost. Less than the 30 s that torchrun leaves before it kills.
inline constexpr std::chrono::seconds kSignalGrace{15};

/// What joins ranks in this build: "gloo (CPU), nccl (CUDA)", or why the latter is missing.
std::string describe_rank_backends();

}  // namespace parallax::train
