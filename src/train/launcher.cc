// The launcher of a run's ranks.
// SPDX-License-Identifier: Apache-2.0
#include "train/launcher.h"

#include <ATen/Parallel.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "core/env.h"
#include "parallax/error.h"
#include "train/distributed.h"

namespace parallax::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kTimeToNotice{5};
constexpr long kPollNanoseconds = 50'000'000;

/// Blocks the signals that the launcher waits for, for its lifetime.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigemptyset(&signals_);
    for (const int signal : {SIGINT, SIGTERM, SIGCHLD}) sigaddset(&signals_, signal);
    pthread_sigmask(SIG_BLOCK, &signals_, &outer_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &outer_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

  /// The next of them, 0 if none comes for a moment.
  int wait() const {
    const timespec moment{.tv_sec = 0, .tv_nsec = kPollNanoseconds};
    return std::max(0, sigtimedwait(&signals_, nullptr, &moment));
  }
  /// In a child: signals as they were outside.
  void restore() const { sigprocmask(SIG_SETMASK, &outer_, nullptr); }

 private:
  sigset_t signals_{}, outer_{};
};

/// A pipe that nothing is written to: its read end tells when the last write end is closed, as that
/// of a process is when it dies. (PR_SET_PDEATHSIG comes once for each thread of the parent.)
class LifePipe {
 public:
  LifePipe() {
    PLX_CHECK(::pipe2(ends_.data(), O_CLOEXEC) == 0, "cannot open a pipe: ", std::strerror(errno));
  }
  ~LifePipe() {
    for (const int end : ends_) ::close(end);
  }
  LifePipe(const LifePipe&) = delete;
  LifePipe& operator=(const LifePipe&) = delete;
  int read_end() const { return ends_[0]; }

 private:
  std::array<int, 2> ends_{};
};

/// Pointers to strings as exec wants them.
std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> list;
  for (std::string& text : strings) list.push_back(text.data());
  list.push_back(nullptr);
  return list;
}

/// The environment of one rank: this process's, and what makes it a rank.
std::vector<std::string> environment_of(int rank, int size, int port, int pipe) {
  using core::Env;
  std::map<std::string, std::string> values;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) values[text.substr(0, equals)] = text.substr(equals + 1);
  }
  const std::string threads = core::env_name(Env::kNumThreads);
  if (!values.contains(threads) && !values.contains("OMP_NUM_THREADS"))
    values[threads] = std::to_string(std::max(1, at::get_num_threads() / size));
  values[core::env_name(Env::kRank)] = std::to_string(rank);
  values[core::env_name(Env::kLocalRank)] = std::to_string(rank);
  values[core::env_name(Env::kWorldSize)] = std::to_string(size);
  values[core::env_name(Env::kMasterAddress)] = "127.0.0.1";
  values[core::env_name(Env::kMasterPort)] = std::to_string(port);
  values[core::env_name(Env::kAgentStore)] = "True";
  values[core::env_name(Env::kLauncherPipe)] = std::to_string(pipe);
  std::vector<std::string> list;
  for (const auto& [name, value] : values) list.push_back(name + "=" + value);
  return list;
}

std::string how_it_ended(int status) {
  if (WIFEXITED(status)) return "ended with status " + std::to_string(WEXITSTATUS(status));
  const int signal = WTERMSIG(status);
  const char* const name = sigabbrev_np(signal);
  return std::string("was ended by SIG") +
         (name != nullptr ? name : std::to_string(signal).c_str()) +
         (signal == SIGKILL ? " (as the system does when memory runs out)" : "");
}

class Launcher {
 public:
  explicit Launcher(const LaunchOptions& options) : options_(options), meeting_(open_meeting()) {}

  int run() {
    for (int rank = 0; rank < options_.num_processes; ++rank) start(rank);
    while (!running_.empty()) {
      const int signal = signals_.wait();
      if (signal == SIGINT || signal == SIGTERM) pass_on(signal);
      reap();
      tell_of_failure();
      end_others();
    }
    if (failed_) return 1;
    return signal_ != 0 ? 128 + signal_ : 0;
  }

 private:
  void start(int rank) {
    std::vector<std::string> command = options_.command;
    std::vector<std::string> environment =
        environment_of(rank, options_.num_processes, meeting_.port, pipe_.read_end());
    const auto arguments = pointers(command), variables = pointers(environment);
    const pid_t pid = ::fork();
    PLX_CHECK(pid >= 0, "cannot start rank ", rank, ": ", std::strerror(errno));
    if (pid > 0) {
      running_[rank] = pid;
      return;
    }
    // Only what is allowed between fork and exec. Away from the terminal's group, so that Ctrl-C
    // comes once, through pass_on().
    ::setpgid(0, 0);
    ::fcntl(pipe_.read_end(), F_SETFD, 0);  // kept by exec; the other end is not
    signals_.restore();
    ::execvpe(arguments[0], arguments.data(), variables.data());
    ::_exit(127);
  }

  void tell(int signal) const {
    for (const auto& [rank, pid] : running_) ::kill(pid, signal);
  }

  void pass_on(int signal) {
    tell(signal_ == 0 ? signal : SIGKILL);
    signal_ = signal;
    if (!told_to_end_) told_to_end_ = Clock::now();
  }

  void reap() {
    for (auto it = running_.begin(); it != running_.end();) {
      int status = 0;
      if (::waitpid(it->second, &status, WNOHANG) != it->second) {
        ++it;
        continue;
      }
      const int rank = it->first;
      it = running_.erase(it);
      const bool ended_as_told = signal_ != 0 && WIFEXITED(status) &&
                                 (WEXITSTATUS(status) == 128 + signal_ || WEXITSTATUS(status) == 0);
      if (status != 0 && !ended_as_told) note_failure(rank, status);
    }
  }

  /// The first one counts. But a rank that a signal ends closes its connections a moment before it
  /// can be waited for, and another may have missed it and ended by then.
  void note_failure(int rank, int status) {
    const bool by_signal = WIFSIGNALED(status);
    if (failed_ && (failed_->is_told || failed_->by_signal || !by_signal)) return;
    failed_ = Failure{.at = failed_ ? failed_->at : Clock::now(),
                      .by_signal = by_signal,
                      .rank = rank,
                      .status = status};
  }

  void tell_of_failure() {
    if (!failed_ || failed_->is_told) return;
    const bool may_change = !failed_->by_signal && !running_.empty();
    if (may_change && Clock::now() - failed_->at <= kTimeToNotice) return;
    failed_->is_told = true;
    std::fprintf(stderr, "plx: rank %d of %d %s; the others are told to end\n", failed_->rank,
                 options_.num_processes, how_it_ended(failed_->status).c_str());
  }

  void end_others() {
    const auto now = Clock::now();
    if (failed_ && !told_to_end_ && (failed_->by_signal || now - failed_->at > kTimeToNotice)) {
      tell(SIGTERM);
      tell(SIGCONT);  // one that is stopped would not hear it
      told_to_end_ = now;
    }
    if (told_to_end_ && now - *told_to_end_ > options_.time_to_end) tell(SIGKILL);
  }

  struct Failure {
    Clock::time_point at;
    bool by_signal;
    int rank, status;
    bool is_told = false;
  };

  LaunchOptions options_;
  BlockedSignals signals_;  // before the meeting, whose thread inherits them
  Meeting meeting_;
  LifePipe pipe_;
  std::map<int, pid_t> running_;
  int signal_ = 0;
  std::optional<Failure> failed_;
  std::optional<Clock::time_point> told_to_end_;
};

}  // namespace

int launch(const LaunchOptions& options) { return Launcher(options).run(); }

void end_with_launcher() {
  const std::string text = core::env_value(core::Env::kLauncherPipe);
  int pipe = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), pipe);
  if (text.empty() || error != std::errc() || ::fcntl(pipe, F_SETFD, FD_CLOEXEC) != 0) return;
  std::thread([pipe] {
    char nothing = 0;
    while (::read(pipe, &nothing, 1) < 0 && errno == EINTR) {
    }
    ::kill(::getpid(), SIGTERM);
  }).detach();
}

}  // namespace parallax::train
