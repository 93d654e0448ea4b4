// Forward: one block per tile of rows (forward_tile.cuh).
// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch_kernel.h"
#include "cuda/portable/forward_tile.cuh"
#include "cuda/portable/launch.h"

namespace parallax::cuda::portable {
namespace {

constexpr int kTileRows = 32;

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    forward_kernel(const __grid_constant__ ForwardCall call,
                   const __grid_constant__ TileSlots slots) {
  extern __shared__ float4 shared_memory[];
  auto& memory = *reinterpret_cast<ForwardMemory<Shape>*>(shared_memory);
  const AttentionCall& attention = call.attention;
  const RowTile tile = block_row_tile<Shape::kRows>(attention, slots);
  if (tile.num_rows <= 0) return;
  start_forward<Shape>(attention, tile, memory);
  ForwardState<Shape> state;
  const ForwardSources from{key_source(attention.k, attention, tile.sequence, tile.head_kv),
                            key_source(attention.v, attention, tile.sequence, tile.head_kv)};
  forward_keys<Shape>(attention, tile, from, tile_keys(attention, tile), memory, state);
  finish_forward<Shape>(call, tile, memory.rows, state);
}

}  // namespace

void launch_forward(const ForwardCall& call, cudaStream_t stream) {
  const TileSlots slots = row_tile_slots(call.attention, kTileRows);
  with_padded_head_dim(call.attention.head_dim, [&](auto padded) {
    using Shape = TileShape<kTileRows, padded()>;
    launch_kernel(forward_kernel<Shape>,
                  {.blocks_x = slots.count * call.attention.num_heads_kv,
                   .threads = Shape::kThreads,
                   .shared_bytes = sizeof(ForwardMemory<Shape>),
                   .stream = stream},
                  call, slots);
  });
}

}  // namespace parallax::cuda::portable
