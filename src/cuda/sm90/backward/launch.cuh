// From a call to the launches of one instance of the backward kernels.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "cuda/launch_kernel.h"
#include "cuda/sm90/backward/instance.h"
#include "cuda/sm90/backward/kernel.cuh"
#include "cuda/sm90/support.h"

namespace parallax::cuda::sm90 {

template <class Config, TileRows kRows>
void launch_pass(const BackwardMaps& maps, const PassParams& params, int num_blocks,
                 cudaStream_t stream) {
  using Pass = BackwardPass<Config, kRows>;
  const LaunchShape shape{.blocks_x = std::min(num_blocks, params.schedule.num_tiles),
                          .threads = Pass::kThreads,
                          .shared_bytes = Pass::kSharedBytes,
                          .stream = stream};
  launch_kernel(backward_kernel<Pass, false>, shape, maps, params);
  launch_kernel(backward_kernel<Pass, true>, shape, maps, params);
}

/// Zeros into the passes' workspace, the pass over queries and the one over keys, each with a
/// repair behind it, which returns at once unless a tile was flagged.
template <class Config>
void launch_backward(const BackwardLaunch& launch, cudaStream_t stream) {
  const AttentionCall& attention = launch.call.attention;
  const MapShape queries = query_map_shape(attention, kBackwardRows);
  const MapShape keys = key_map_shape(attention, kBackwardRows);
  const BackwardMaps maps{.q = make_tensor_map(attention.q, queries, attention.dtype),
                          .r = make_tensor_map(attention.r, queries, attention.dtype),
                          .d_out = make_tensor_map(launch.call.d_out, queries, attention.dtype),
                          .k = make_tensor_map(attention.k, keys, attention.dtype),
                          .v = make_tensor_map(attention.v, keys, attention.dtype)};
  const BackwardWorkspace& workspace = launch.workspace;
  PassParams params{.call = launch.call,
                    .scale_log2 = attention.softmax_scale * 1.44269504f,
                    .schedule = {},
                    .workspace = nullptr,
                    .flagged_tiles = nullptr,
                    .constants = workspace.constants,
                    .constants_per_head = launch.constants_per_head};
  PLX_CUDA_CHECK(cudaMemsetAsync(workspace.passes, 0, 2 * sizeof(TileWorkspace), stream));
  const auto pass = [&]<TileRows kRows>(int which) {
    params.schedule = launch.schedules[which];
    params.workspace = &workspace.passes[which];
    params.flagged_tiles = workspace.flagged_tiles[which];
    launch_pass<Config, kRows>(maps, params, launch.num_blocks, stream);
  };
  pass.template operator()<TileRows::kQueries>(0);
  pass.template operator()<TileRows::kKeys>(1);
}

}  // namespace parallax::cuda::sm90
