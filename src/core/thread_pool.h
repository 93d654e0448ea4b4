// Threads for the CPU backends. One job at a time: tasks are handed out by an atomic counter, so
// which thread runs a task is open and no result may depend on it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace parallax::core {

using TaskBody = std::function<void(int64_t)>;

/// Runs body(task) for every task in [0, num_tasks) on the runner that set_parallel_for()
/// installed, or else on the process-wide pool, and returns when all are done. A call from inside a
/// task runs its own tasks one after the other on the calling thread. If tasks throw, one of the
/// exceptions is rethrown here and tasks that had not started may never run.
void parallel_for(int64_t num_tasks, const TaskBody& body);

/// PLX_NUM_THREADS, if it is set. Throws Error if it is not a number from 1 to 4096.
std::optional<int> thread_limit();

/// Threads of the process-wide pool: thread_limit(), or the cores this process may use.
int num_threads();

/// A fixed set of threads. The thread that calls run() works too, so a pool of one has no workers.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// As parallel_for(). While another thread's job occupies the workers, the caller runs its tasks
  /// alone instead of waiting: two callers that wait for each other cannot block here.
  void run(int64_t num_tasks, const TaskBody& body);

 private:
  struct Job;
  void worker_loop();

  std::mutex caller_mutex_;  // held by the thread whose job the workers serve
  std::mutex mutex_;         // guards everything below
  std::condition_variable job_arrived_;
  std::condition_variable workers_left_;
  Job* job_ = nullptr;
  uint64_t job_number_ = 0;
  int num_workers_in_job_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace parallax::core
