// The compiled instances of the Hopper backward kernels, one per row of instances.cmake.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "cuda/sm90/backward/kernel.h"

namespace parallax::cuda::sm90 {

/// A call's device memory, cut up. Of the two passes, that over queries comes first.
struct BackwardWorkspace {
  TileWorkspace* passes;  // two
  uint32_t* flagged_tiles[2];
  float* constants;
  int64_t bytes;
};

struct BackwardLaunch {
  BackwardCall call;
  int64_t constants_per_head;  // groups of 64 queries
  TileSchedule schedules[2];
  BackwardWorkspace workspace;
  int num_blocks;  // that run at once
};

struct BackwardInstance {
  DType dtype;
  int head_dim;
  void (*launch)(const BackwardLaunch& launch, cudaStream_t stream);
};

std::span<const BackwardInstance> backward_instances();

}  // namespace parallax::cuda::sm90
