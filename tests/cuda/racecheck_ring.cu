// What compute-sanitizer's racecheck makes of the handshake that the Hopper kernels use: one warp
// fills a ring of two stages, another reads it, and mbarriers stand between them. Right in either
// form; racecheck reports hazards where a single lane arrives for its warp after __syncwarp(), and
// none where all lanes arrive for themselves (docs/kernels/sm90_backward.md).
//   compute-sanitizer --tool racecheck racecheck_ring one     # or: all
// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

#include "cuda/device/ptx/barrier.cuh"
#include "cuda/device/ptx/shared.cuh"

namespace {

namespace ptx = parallax::cuda::ptx;

constexpr int kStages = 2, kRounds = 9, kLanes = 32;

template <bool kOneLane>
__device__ void arrive(uint32_t barrier) {
  if constexpr (!kOneLane) return ptx::barrier_arrive(barrier);
  __syncwarp();
  if (threadIdx.x % kLanes == 0) ptx::barrier_arrive(barrier);
}

/// sums[lane] = sum over the rounds of round + 31 - lane.
template <bool kOneLane>
__global__ void ring_kernel(float* sums) {
  __shared__ float numbers[kStages][kLanes];
  __shared__ uint64_t full[kStages], empty[kStages];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage)
      for (uint64_t* barrier : {&full[stage], &empty[stage]})
        ptx::barrier_init(ptx::shared_address(barrier), kOneLane ? 1 : kLanes);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  float sum = 0.0f;
  for (int round = 0; round < kRounds; ++round) {
    const int stage = round % kStages, parity = round / kStages % 2;
    const uint32_t is_full = ptx::shared_address(&full[stage]);
    const uint32_t is_empty = ptx::shared_address(&empty[stage]);
    if (threadIdx.x < kLanes) {
      ptx::barrier_wait(is_empty, parity ^ 1);
      numbers[stage][lane] = static_cast<float>(round + lane);
      arrive<kOneLane>(is_full);
    } else {
      ptx::barrier_wait(is_full, parity);
      sum += numbers[stage][kLanes - 1 - lane];
      arrive<kOneLane>(is_empty);
    }
  }
  if (threadIdx.x >= kLanes) sums[lane] = sum;
}

}  // namespace

int main(int argc, char** argv) {
  const bool one = argc == 2 && std::strcmp(argv[1], "one") == 0;
  if (!one && (argc != 2 || std::strcmp(argv[1], "all") != 0)) {
    std::fprintf(stderr, "usage: %s one|all: the lanes of a warp that arrive\n", argv[0]);
    return 2;
  }
  float *device_sums = nullptr, sums[kLanes] = {};
  cudaMalloc(&device_sums, sizeof sums);
  (one ? ring_kernel<true> : ring_kernel<false>)<<<1, 2 * kLanes>>>(device_sums);
  const cudaError_t error = cudaMemcpy(sums, device_sums, sizeof sums, cudaMemcpyDeviceToHost);
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
    return 1;
  }
  constexpr float kSumOfRounds = kRounds * (kRounds - 1) / 2;
  for (int lane = 0; lane < kLanes; ++lane)
    if (sums[lane] != kSumOfRounds + kRounds * static_cast<float>(kLanes - 1 - lane)) {
      std::fprintf(stderr, "lane %d: wrong sum %f\n", lane, static_cast<double>(sums[lane]));
      return 1;
    }
  std::puts("right");
  return 0;
}
