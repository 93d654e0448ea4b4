// Starts a kernel, with the checks that every launch needs.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "cuda/check.h"

namespace parallax::cuda {

struct LaunchShape {
  int64_t blocks_x;
  int blocks_y = 1;
  int threads = 0;
  size_t shared_bytes = 0;  // dynamic shared memory
  cudaStream_t stream = nullptr;
};

/// Nothing for an empty grid. Throws Error if the launch fails.
template <typename... Params>
void launch_kernel(void (*kernel)(Params...), const LaunchShape& shape, Params... params) {
  if (shape.blocks_x == 0 || shape.blocks_y == 0) return;
  PLX_CHECK(shape.blocks_x <= std::numeric_limits<int32_t>::max(), "a CUDA grid of ",
            shape.blocks_x, " blocks is too large; the tensors have too many rows for one call");
  constexpr size_t kDefaultLimit = 48 * 1024;
  if (shape.shared_bytes > kDefaultLimit)
    PLX_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shape.shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(shape.blocks_x), static_cast<unsigned>(shape.blocks_y));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  PLX_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, params...));
  PLX_CUDA_CHECK(cudaGetLastError());
}

}  // namespace parallax::cuda
