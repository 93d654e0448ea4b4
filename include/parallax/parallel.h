// How the CPU backends get their threads.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

namespace parallax {

/// Runs body(task) once for every task in [0, num_tasks), in any order and on any thread, and
/// returns when all are done. Results never depend on how tasks are spread.
using ParallelFor =
    std::function<void(int64_t num_tasks, const std::function<void(int64_t)>& body)>;

/// Replaces the library's own thread pool, for programs that bring their own threads (the Torch ops
/// install Torch's). An empty function restores the pool, whose size is PLX_NUM_THREADS or else the
/// number of cores this process may use. Not to be called while a library call is running.
void set_parallel_for(ParallelFor parallel_for);

}  // namespace parallax
