// From a call to the launches of one instance of the forward kernel.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "cuda/check.h"
#include "cuda/sm90/forward/instance.h"
#include "cuda/sm90/forward/kernel.cuh"
#include "cuda/tensor_map.h"

namespace parallax::cuda::sm90 {

template <class Config>
constexpr ForwardTile kForwardTile = {
    .queries = Config::kQueries, .keys = Config::kKeys, .warps = 4 * Config::kConsumers};

template <class Config>
ForwardMaps make_forward_maps(const AttentionCall& call) {
  const MapShape queries{.head_dim = call.head_dim,
                         .num_tokens = call.sequences.num_queries,
                         .num_heads = call.num_heads_q,
                         .num_batches = num_batches(call),
                         .box_tokens = 8};
  const MapShape keys{.head_dim = call.head_dim,
                      .num_tokens = call.sequences.num_keys,
                      .num_heads = call.num_heads_kv,
                      .num_batches = num_batches(call),
                      .box_tokens = Config::kKeys};
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
  const AttentionCall& attention = call.attention;
  auto* const header = static_cast<ForwardWorkspace*>(workspace);
  const ForwardMaps maps = make_forward_maps<Config>(attention);
  const ForwardParams params{.sequences = attention.sequences,
                             .num_heads_q = attention.num_heads_q,
                             .group = attention.group,
                             .scale_log2 = attention.softmax_scale * 1.44269504f,
                             .causal = attention.causal,
                             .window = attention.window,
                             .v = attention.v,
                             .out = call.out,
                             .out_softmax = call.out_softmax,
                             .lse = call.lse,
                             .t_mean = call.t_mean,
                             .schedule = schedule,
                             .workspace = header,
                             .flagged_tiles = reinterpret_cast<uint32_t*>(header + 1)};
  const int blocks = std::min(num_blocks, schedule.num_tiles);
  PLX_CUDA_CHECK(cudaMemsetAsync(workspace, 0, sizeof(ForwardWorkspace), stream));
  const auto launch = [&](auto* kernel) {
    PLX_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        Config::kSharedBytes));
    const cudaLaunchConfig_t config{.gridDim = dim3(static_cast<unsigned>(blocks)),
                                    .blockDim = dim3(Config::kThreads),
                                    .dynamicSmemBytes = Config::kSharedBytes,
                                    .stream = stream,
                                    .attrs = nullptr,
                                    .numAttrs = 0};
    PLX_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, maps, params));
  };
  launch(&forward_kernel<Config, false>);
  launch(&forward_kernel<Config, true>);
}

}  // namespace parallax::cuda::sm90
