// Every task runs once, errors arrive, and nothing blocks: nested, concurrent and forked callers.
// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>

#include "parallax/error.h"
#include "parallax/parallel.h"

namespace parallax::core {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t num_tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(num_tasks));
      pool.run(num_tasks, [&](int64_t task) { ++runs[static_cast<size_t>(task)]; });
      for (const auto& count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPool, ServesManyJobsOneAfterTheOther) {
  ThreadPool pool(4);
  std::atomic<int64_t> sum = 0;
  for (int job = 0; job < 500; ++job) pool.run(8, [&](int64_t task) { sum += task; });
  EXPECT_EQ(sum, 500 * 28);
}

TEST(ThreadPool, UsesMoreThanOneThread) {
  ThreadPool pool(2);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  std::atomic<int> waiting = 0;
  // Each of the two tasks waits for the other to have started, so one thread alone cannot do both.
  pool.run(2, [&](int64_t) {
    ++waiting;
    while (waiting < 2) std::this_thread::yield();
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(threads.size(), 2u);
}

TEST(ThreadPool, ReturnsOnlyAfterTheSlowestWorker) {
  ThreadPool pool(2);
  const auto caller = std::this_thread::get_id();
  std::atomic<int> started = 0;
  bool worker_done = false;  // plain: run() itself must order the write before the read
  pool.run(2, [&](int64_t) {
    ++started;
    while (started < 2) std::this_thread::yield();
    if (std::this_thread::get_id() == caller) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    worker_done = true;
  });
  EXPECT_TRUE(worker_done);
}

TEST(ThreadPool, ExceptionOfATaskReachesTheCallerAndThePoolSurvives) {
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    const auto fail_at_5 = [](int64_t task) {
      if (task == 5) throw std::runtime_error("task 5");
    };
    EXPECT_THROW(pool.run(100, fail_at_5), std::runtime_error);
    std::atomic<int> count = 0;
    pool.run(100, [&](int64_t) { ++count; });
    EXPECT_EQ(count, 100);
  }
}

TEST(ThreadPool, NestedCallsRunOnTheCallingThread) {
  ThreadPool pool(3);
  std::atomic<int> count = 0;
  std::atomic<bool> moved = false;
  pool.run(4, [&](int64_t) {
    const auto outer = std::this_thread::get_id();
    pool.run(10, [&](int64_t) {
      ++count;
      if (std::this_thread::get_id() != outer) moved = true;
    });
  });
  EXPECT_EQ(count, 40);
  EXPECT_FALSE(moved);
}

TEST(ThreadPool, ConcurrentCallersBothFinish) {
  ThreadPool pool(3);
  std::atomic<int> count = 0;
  const auto call_often = [&] {
    for (int job = 0; job < 200; ++job) pool.run(10, [&](int64_t) { ++count; });
  };
  std::thread other(call_often);
  call_often();
  other.join();
  EXPECT_EQ(count, 4000);
}

TEST(ThreadPool, NeedsAThread) { EXPECT_THROW(ThreadPool(0), Error); }

TEST(ParallelForHook, InstalledRunnerGetsTheTasks) {
  std::atomic<int> calls = 0;
  std::atomic<int> count = 0;
  set_parallel_for([&](int64_t num_tasks, const std::function<void(int64_t)>& body) {
    ++calls;
    for (int64_t task = num_tasks; task-- > 0;) body(task);
  });
  // The inner calls are nested, so the runner sees only the outer one.
  parallel_for(4, [&](int64_t) { parallel_for(5, [&](int64_t) { ++count; }); });
  set_parallel_for({});
  EXPECT_EQ(count, 20);
  EXPECT_EQ(calls, 1);
  parallel_for(4, [&](int64_t) { ++count; });
  EXPECT_EQ(count, 24);
  EXPECT_EQ(calls, 1);
}

TEST(NumThreads, EnvironmentDecides) {
  ::setenv("PLX_NUM_THREADS", "3", 1);
  EXPECT_EQ(num_threads(), 3);
  for (const char* bad : {"0", "-1", "two", "4x", "4097", "99999999999999"}) {
    ::setenv("PLX_NUM_THREADS", bad, 1);
    try {
      num_threads();
      ADD_FAILURE() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()), std::string("PLX_NUM_THREADS is '") + bad +
                                               "'; it must be a number from 1 to 4096");
    }
  }
  ::unsetenv("PLX_NUM_THREADS");
  EXPECT_EQ(thread_limit(), std::nullopt);
  EXPECT_GE(num_threads(), 1);
}

#ifndef __SANITIZE_THREAD__  // TSan does not support a fork with threads
TEST(ParallelForHook, WorksInAForkedChild) {
  std::atomic<int> count = 0;
  parallel_for(10, [&](int64_t) { ++count; });  // the pool exists
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::atomic<int> in_child = 0;
    parallel_for(10, [&](int64_t) { ++in_child; });
    ::_exit(in_child == 10 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}
#endif

}  // namespace
}  // namespace parallax::core
