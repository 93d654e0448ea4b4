// The compiled instances of the Hopper forward kernel, one per row of instances.cmake.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "cuda/sm90/forward/kernel.h"
#include "cuda/tensor_map.h"

namespace parallax::cuda::sm90 {

/// What the schedule of an instance depends on.
struct ForwardTile {
  int queries;
  int warps;  // that compute
};

struct ForwardInstance {
  DType dtype;
  int head_dim;
  ForwardTile tile;
  void (*launch)(const ForwardCall& call, const TileSchedule& schedule, void* workspace,
                 int num_blocks, cudaStream_t stream);
};

std::span<const ForwardInstance> forward_instances();

}  // namespace parallax::cuda::sm90
