// From a call to the launches of one instance of the forward kernel.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "cuda/launch_kernel.h"
#include "cuda/sm90/forward/instance.h"
#include "cuda/sm90/forward/kernel.cuh"
#include "cuda/sm90/support.h"

namespace parallax::cuda::sm90 {

template <class Config>
constexpr ForwardTile kForwardTile = {.queries = Config::kQueries, .warps = 4 * Config::kConsumers};

template <class Config>
ForwardMaps make_forward_maps(const AttentionCall& call) {
  const MapShape queries = query_map_shape(call, /*box_tokens=*/8);
  const MapShape keys = key_map_shape(call, Config::kKeys);
  return {.q = make_tensor_map(call.q, queries, call.dtype),
          .r = make_tensor_map(call.r, queries, call.dtype),
          .k = make_tensor_map(call.k, keys, call.dtype),
          .v = make_tensor_map(call.v, keys, call.dtype)};
}

/// Three things on the stream: zeros into the workspace, the kernel, and the repair, which returns
/// at once unless a tile was flagged.
template <class Config>
void launch_forward(const ForwardCall& call, const TileSchedule& schedule, void* workspace,
                    int num_blocks, cudaStream_t stream) {
  auto* const header = static_cast<TileWorkspace*>(workspace);
  const ForwardMaps maps = make_forward_maps<Config>(call.attention);
  const ForwardParams params{.call = call,
                             .scale_log2 = call.attention.softmax_scale * 1.44269504f,
                             .schedule = schedule,
                             .workspace = header,
                             .flagged_tiles = reinterpret_cast<uint32_t*>(header + 1)};
  const LaunchShape shape{.blocks_x = std::min(num_blocks, schedule.num_tiles),
                          .threads = Config::kThreads,
                          .shared_bytes = Config::kSharedBytes,
                          .stream = stream};
  PLX_CUDA_CHECK(cudaMemsetAsync(workspace, 0, sizeof(TileWorkspace), stream));
  launch_kernel(forward_kernel<Config, false>, shape, maps, params);
  launch_kernel(forward_kernel<Config, true>, shape, maps, params);
}

}  // namespace parallax::cuda::sm90
