// See child_process.h. Its input is a socket: a pipe that nobody reads would raise SIGPIPE.
// SPDX-License-Identifier: Apache-2.0
#include "io/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "parallax/error.h"

namespace parallax::io {
namespace {

// The file actions of posix_spawn, freed however the call ends.
class SpawnActions {
 public:
  SpawnActions() { ::posix_spawn_file_actions_init(&actions_); }
  ~SpawnActions() { ::posix_spawn_file_actions_destroy(&actions_); }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;

  void connect(const Descriptor& ours, int theirs) {
    ::posix_spawn_file_actions_adddup2(&actions_, ours.number(), theirs);
  }
  const posix_spawn_file_actions_t* get() const { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& command) : name_(command.at(0)) {
  std::array<int, 2> sockets{}, pipe{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()) != 0) {
    throw_system_error("start", name_, errno);
  }
  input_ = Descriptor(sockets[0], name_);
  const Descriptor their_input(sockets[1], name_);
  if (::pipe2(pipe.data(), O_CLOEXEC) != 0) throw_system_error("start", name_, errno);
  output_ = Descriptor(pipe[0], name_);
  const Descriptor their_output(pipe[1], name_);

  SpawnActions actions;
  actions.connect(their_input, STDIN_FILENO);
  actions.connect(their_output, STDOUT_FILENO);
  std::vector<std::string> words = command;
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const int error = ::posix_spawnp(&pid_, arguments[0], actions.get(), /*attrp=*/nullptr,
                                   arguments.data(), environ);
  if (error != 0) {
    pid_ = -1;
    throw_system_error("start", name_, error);
  }
}

ChildProcess::~ChildProcess() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

bool ChildProcess::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(input_.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EPIPE || errno == ECONNRESET)) return false;
    if (count < 0) throw_system_error("write to", name_, errno);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

std::optional<std::string> ChildProcess::read_line() {
  std::array<char, 65536> buffer;
  size_t searched = 0;
  while (true) {
    const size_t end = received_.find('\n', searched);
    if (end != std::string::npos) {
      std::string line = received_.substr(0, end);
      received_.erase(0, end + 1);
      return line;
    }
    searched = received_.size();
    const ssize_t count = ::read(output_.number(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_system_error("read from", name_, errno);
    if (count == 0) break;
    received_.append(buffer.data(), static_cast<size_t>(count));
  }
  if (received_.empty()) return std::nullopt;
  return std::exchange(received_, {});
}

int ChildProcess::wait() {
  close_input();
  output_ = {};
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0) {
    if (errno != EINTR) throw_system_error("wait for", name_, errno);
  }
  pid_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace parallax::io
