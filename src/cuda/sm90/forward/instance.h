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

/// q, r and the outputs, and k and v, as the copy engine cuts them. Packed tensors are one batch.
inline MapShape query_map_shape(const AttentionCall& call) {
  const SequenceTable& table = call.sequences;
  return {.head_dim = call.head_dim,
          .num_tokens = table.num_queries,
          .num_heads = call.num_heads_q,
          .num_batches = table.cu_seqlens_q != nullptr ? 1 : table.num_sequences,
          .box_tokens = 8};
}
inline MapShape key_map_shape(const AttentionCall& call, int box_tokens) {
  MapShape shape = query_map_shape(call);
  shape.num_tokens = call.sequences.num_keys;
  shape.num_heads = call.num_heads_kv;
  shape.box_tokens = box_tokens;
  return shape;
}

std::span<const ForwardInstance> forward_instances();

}  // namespace parallax::cuda::sm90
