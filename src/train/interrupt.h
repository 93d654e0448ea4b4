// SIGINT and SIGTERM as a request that the training loop answers between two steps.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <csignal>

namespace parallax::train {

/// Takes over both signals for its lifetime, one instance at a time. The first signal is only
/// noted; the second of the same kind ends the process as if nobody listened. Where an exception
/// ends that time, so that a message is about to end the process, listening goes on.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  /// The signal that arrived, 0 if none.
  static int received();

 private:
  int num_uncaught_;  // exceptions under way at the start
  struct sigaction outer_int_{}, outer_term_{};
};

}  // namespace parallax::train
