// Signal handlers.
// SPDX-License-Identifier: Apache-2.0
#include "train/interrupt.h"

#include <exception>

namespace parallax::train {
namespace {

volatile std::sig_atomic_t received_signal = 0;

extern "C" void note_signal(int signal) { received_signal = signal; }

}  // namespace

InterruptScope::InterruptScope() : num_uncaught_(std::uncaught_exceptions()) {
  received_signal = 0;
  struct sigaction action{};
  action.sa_handler = note_signal;
  // SA_RESETHAND: back to the default at the first signal, so that the second ends the process.
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &outer_int_);
  sigaction(SIGTERM, &action, &outer_term_);
}

InterruptScope::~InterruptScope() {
  // An error is yet to be told: no signal may end the process before, as when a launcher tells a
  // rank to end that has just lost another.
  if (std::uncaught_exceptions() > num_uncaught_) return;
  sigaction(SIGINT, &outer_int_, nullptr);
  sigaction(SIGTERM, &outer_term_, nullptr);
}

int InterruptScope::received() { return received_signal; }

}  // namespace parallax::train
