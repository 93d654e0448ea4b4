// Another program that is written to and whose answers are read.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/descriptor.h"

namespace parallax::io {

/// A running program. Its standard input and output are connected to this object, standard error is
/// ours. Not for programs that write much before their input has ended: both sides would wait.
class ChildProcess {
 public:
  /// command[0] is searched for in PATH. An Error that names it and the system's reason if it
  /// cannot be started.
  explicit ChildProcess(const std::vector<std::string>& command);
  /// Kills it if it was not waited for.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  /// False if the program reads no more, as when it has ended; never raises SIGPIPE.
  bool write(std::string_view bytes);
  /// Nothing more will be written.
  void close_input() { input_ = {}; }
  /// The next line that it writes, without the line end; nothing when its output has ended.
  std::optional<std::string> read_line();
  /// Ends its input, waits for its end and returns its exit status; 128 + n after signal n.
  int wait();

 private:
  std::string name_;
  pid_t pid_ = -1;
  Descriptor input_, output_;
  std::string received_;  // read, and not yet returned
};

}  // namespace parallax::io
