// SPDX-License-Identifier: Apache-2.0
#include "torch/parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <optional>

#include "core/thread_pool.h"
#include "parallax/parallel.h"

namespace parallax::torch_ops {
namespace {

/// PLX_NUM_THREADS may leave some of Torch's threads idle; it never adds any.
int64_t max_workers() {
  static const std::optional<int> limit = core::thread_limit();
  const int64_t count = torch::stable::get_num_threads();
  return limit ? std::min<int64_t>(*limit, count) : count;
}

// Torch hands out equal ranges. Tasks are unequal (the last queries of a causal mask see the most
// keys), so each range is one worker, and the workers draw tasks from a common counter.
void run_tasks(int64_t num_tasks, const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> next_task{0};
  std::exception_ptr first_error;
  std::mutex error_mutex;
  const auto work = [&](int64_t, int64_t) {
    try {
      for (int64_t task; (task = next_task.fetch_add(1)) < num_tasks;) body(task);
    } catch (...) {  // must not cross Torch's C interface, which would lose the message
      const std::lock_guard lock(error_mutex);
      if (!first_error) first_error = std::current_exception();
    }
  };
  const int64_t num_workers = std::min(max_workers(), num_tasks);
  if (num_workers <= 1)
    work(0, 1);
  else
    torch::stable::parallel_for(0, num_workers, 1, work);
  if (first_error) std::rethrow_exception(first_error);
}

}  // namespace

void use_torch_threads() { set_parallel_for(run_tasks); }

}  // namespace parallax::torch_ops
