// Starting the ranks of a run on this machine, one process each, and ending them together.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace parallax::train {

struct LaunchOptions {
  int num_processes = 1;
  /// The program and its arguments, the same for each; found like a shell's command.
  std::vector<std::string> command;
  /// What a rank gets to save and end once it is told to, before it is killed; longer than
  /// kSignalGrace (distributed.h).
  std::chrono::milliseconds time_to_end = std::chrono::seconds(60);
};

/// Runs the command once per rank with torchrun's environment variables (RANK, WORLD_SIZE, ...) and
/// returns when all have ended: 0 if all succeeded, 128 + the signal if this process got SIGINT or
/// SIGTERM and passed it on to them, else 1. A rank that fails is named on stderr, and the others
/// are told to end (SIGTERM), at once if a signal ended it, else after they had 5 s to notice
/// themselves. A second SIGINT or SIGTERM kills all; if this process dies, end_with_launcher()
/// tells them. The cores are shared out by PLX_NUM_THREADS, unless it or OMP_NUM_THREADS is set.
/// Both signals and SIGCHLD are blocked in the calling thread meanwhile.
int launch(const LaunchOptions& options);

/// In a rank: SIGTERM for this process when the launcher that started it is gone. Does nothing in
/// other processes.
void end_with_launcher();

}  // namespace parallax::train
