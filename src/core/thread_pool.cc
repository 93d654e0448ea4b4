// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <atomic>
#include <charconv>
#include <exception>
#include <string>

#include "core/env.h"
#include "parallax/error.h"
#include "parallax/parallel.h"

#ifdef __linux__
#include <sched.h>
#endif

namespace parallax::core {
namespace {

constexpr int kMaxThreads = 4096;

thread_local bool inside_task = false;

/// Marks the thread as running a task for as long as it lives.
class TaskScope {
 public:
  TaskScope() : outer_(inside_task) { inside_task = true; }
  ~TaskScope() { inside_task = outer_; }
  TaskScope(const TaskScope&) = delete;
  TaskScope& operator=(const TaskScope&) = delete;

 private:
  bool outer_;
};

void run_serially(int64_t num_tasks, const TaskBody& body) {
  for (int64_t task = 0; task < num_tasks; ++task) body(task);
}

int usable_cores() {
#ifdef __linux__
  cpu_set_t set;  // a container or taskset may allow fewer cores than the machine has
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned cores = std::thread::hardware_concurrency();
  return cores > 0 ? static_cast<int>(cores) : 1;
}

ParallelFor& installed_runner() {
  static ParallelFor runner;
  return runner;
}

ThreadPool& process_pool() {
  // Never destroyed: in a forked child the workers do not exist, and joining them would hang.
  static ThreadPool* const pool = new ThreadPool(num_threads());
  return *pool;
}

}  // namespace

struct ThreadPool::Job {
  const TaskBody& body;
  int64_t num_tasks;
  std::atomic<int64_t> next_task{0};
  std::mutex error_mutex{};
  std::exception_ptr error{};

  /// Takes tasks until none is left. After an exception none is left.
  void work() {
    const TaskScope scope;
    try {
      for (int64_t task; (task = next_task.fetch_add(1, std::memory_order_relaxed)) < num_tasks;)
        body(task);
    } catch (...) {
      next_task.store(num_tasks, std::memory_order_relaxed);
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }
};

ThreadPool::ThreadPool(int num_threads) {
  PLX_CHECK(num_threads >= 1, "a thread pool needs at least 1 thread, got ", num_threads);
  for (int worker = 1; worker < num_threads; ++worker)
    workers_.emplace_back([this] { worker_loop(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  job_arrived_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::worker_loop() {
  uint64_t last_job = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    job_arrived_.wait(lock,
                      [&] { return stopping_ || (job_ != nullptr && job_number_ != last_job); });
    if (stopping_) return;
    Job* const job = job_;
    last_job = job_number_;
    ++num_workers_in_job_;
    lock.unlock();
    job->work();
    lock.lock();
    if (--num_workers_in_job_ == 0) workers_left_.notify_all();
  }
}

void ThreadPool::run(int64_t num_tasks, const TaskBody& body) {
  std::unique_lock caller(caller_mutex_, std::defer_lock);
  if (num_tasks <= 1 || workers_.empty() || inside_task || !caller.try_lock())
    return run_serially(num_tasks, body);
  Job job{.body = body, .num_tasks = num_tasks};
  {
    const std::lock_guard lock(mutex_);
    job_ = &job;
    ++job_number_;
  }
  job_arrived_.notify_all();
  job.work();
  {
    // The job lives on this stack: it is withdrawn first, then every worker inside it must leave.
    std::unique_lock lock(mutex_);
    job_ = nullptr;
    workers_left_.wait(lock, [&] { return num_workers_in_job_ == 0; });
  }
  if (job.error) std::rethrow_exception(job.error);
}

std::optional<int> thread_limit() {
  const std::string setting = env_value(Env::kNumThreads);
  if (setting.empty()) return {};
  int count = 0;
  const char* const end = setting.data() + setting.size();
  const auto parsed = std::from_chars(setting.data(), end, count);
  PLX_CHECK(parsed.ec == std::errc() && parsed.ptr == end && count >= 1 && count <= kMaxThreads,
            env_name(Env::kNumThreads), " is '", setting, "'; it must be a number from 1 to ",
            kMaxThreads);
  return count;
}

int num_threads() {
  const std::optional<int> limit = thread_limit();
  return limit ? *limit : usable_cores();
}

void parallel_for(int64_t num_tasks, const TaskBody& body) {
  if (num_tasks <= 1 || inside_task) return run_serially(num_tasks, body);
  if (const ParallelFor& runner = installed_runner()) {
    return runner(num_tasks, [&](int64_t task) {
      const TaskScope scope;
      body(task);
    });
  }
  process_pool().run(num_tasks, body);
}

}  // namespace parallax::core

namespace parallax {

void set_parallel_for(ParallelFor parallel_for) {
  core::installed_runner() = std::move(parallel_for);
}

}  // namespace parallax
