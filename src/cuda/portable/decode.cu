// Decode: forward over a cache (forward_tile.cuh). A sequence with few query rows cuts its keys
// into pieces, so that a small batch fills the GPU. Where a piece ends depends on the sequence
// alone, and the pieces' states are always added in the order of the keys with the same operations:
//   few tiles:  one block per piece leaves its state in the workspace, a second kernel adds them;
//   many tiles: one block per tile goes through the pieces and adds each to the sum so far.
// So a sequence's bits depend neither on the rest of the batch nor on which of the two ran. The
// host does not know the lengths: it plans for the capacity, and blocks without a piece leave at
// once.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/launch_kernel.h"
#include "cuda/portable/forward_tile.cuh"
#include "cuda/portable/launch.h"

namespace parallax::cuda::portable {
namespace {

constexpr int kMinPieceKeys = 256;  // 8 steps, against reading q and r and writing a state
constexpr int kMaxPieces = 64;
constexpr int kMaxCutRows = 64;         // more rows than that make tiles enough
constexpr int64_t kEnoughBlocks = 256;  // about two per multiprocessor of a large GPU

struct DecodePlan {
  TileSlots slots;
  int tiles_per_cut_sequence;  // at most
  int num_workers;             // blocks per tile: 1, or as many as a sequence may have pieces
  int64_t num_partials;        // states in the workspace
};

/// The state of one tile over some of the keys.
template <typename Shape>
struct alignas(16) PartialState {
  RowState rows[Shape::kRows];
  float sums[Shape::kChunks][2][Shape::kRows][kColumns];
};

/// The pieces of a sequence: piece_keys keys each from `begin` on, the last one fewer.
struct KeyCut {
  int begin, end;
  int piece_keys, count;

  __device__ __forceinline__ ItemRange piece(int idx, const ItemRange& tile) const {
    const int first = begin + idx * piece_keys;
    const int last = idx == count - 1 ? end : first + piece_keys;
    return {max(first, tile.begin), min(last, tile.end)};
  }
};

__device__ __forceinline__ KeyCut cut_keys(const AttentionCall& call,
                                           const DeviceSequence& sequence) {
  const int begin = visible_keys(call, sequence, 0).begin / kItems * kItems;
  const int end = visible_keys(call, sequence, sequence.num_queries - 1).end;
  const int num_keys = max(end - begin, 0);
  const int64_t num_rows = static_cast<int64_t>(sequence.num_queries) * call.group;
  if (num_rows > kMaxCutRows || num_keys <= kMinPieceKeys)
    return {.begin = begin, .end = end, .piece_keys = num_keys, .count = 1};
  const int steps = (num_keys + kItems - 1) / kItems;
  const int piece_keys = max((steps + kMaxPieces - 1) / kMaxPieces * kItems, kMinPieceKeys);
  return {.begin = begin,
          .end = end,
          .piece_keys = piece_keys,
          .count = (num_keys + piece_keys - 1) / piece_keys};
}

template <typename Shape>
__device__ __forceinline__ PartialState<Shape>* partial_of(const DecodePlan& plan,
                                                           const AttentionCall& call,
                                                           const RowTile& tile, void* workspace) {
  const int64_t tile_idx = static_cast<int64_t>(tile.sequence_idx) * plan.tiles_per_cut_sequence +
                           tile.first_row / Shape::kRows;
  return static_cast<PartialState<Shape>*>(workspace) +
         (tile_idx * call.num_heads_kv + tile.head_kv) * plan.num_workers;
}

template <typename Shape>
__device__ __forceinline__ float4& partial_four(PartialState<Shape>& partial, int chunk, int sum,
                                                int i) {
  return *reinterpret_cast<float4*>(&partial.sums[chunk][sum][part_row() + i][part_column()]);
}

template <typename Shape>
__device__ __forceinline__ void store_partial(PartialState<Shape>& partial,
                                              const ForwardState<Shape>& state) {
  if (threadIdx.x % kThreadsPerRow == 0) partial.rows[state_row()] = state.row;
#pragma unroll
  for (int chunk = 0; chunk < Shape::kChunks; ++chunk)
#pragma unroll
    for (int sum = 0; sum < 2; ++sum)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&from)[4] = state.sums[chunk][sum][i];
        partial_four(partial, chunk, sum, i) = make_float4(from[0], from[1], from[2], from[3]);
      }
}

/// By what the sums of two sets of keys are multiplied, and how far the second's centre is from the
/// first's, which the result keeps unless the first is empty.
struct MergeFactors {
  float first, second, shift;
};

/// The statistics over two disjoint sets of keys. Leaves the factors of all rows to the block.
template <int kRows>
__device__ __forceinline__ RowState merge_rows(const RowState& first, const RowState& second,
                                               RowExchange<kRows>& exchange) {
  const float max = fmaxf(first.max, second.max);
  const float base = finite_max(max);
  const float centre = first.weight == 0.0f ? second.centre : first.centre;
  const MergeFactors by{expf(first.max - base), expf(second.max - base), second.centre - centre};
  __syncthreads();
  if (threadIdx.x % kThreadsPerRow == 0) {
    exchange.factors[0][state_row()] = by.first;
    exchange.factors[1][state_row()] = by.second;
    exchange.factors[2][state_row()] = by.shift;
  }
  __syncthreads();
  const float shifted = fmaf(by.shift, second.weight, second.t_sum);
  return {.max = max,
          .weight = fmaf(first.weight, by.first, __fmul_rn(second.weight, by.second)),
          .t_sum = fmaf(first.t_sum, by.first, __fmul_rn(shifted, by.second)),
          .centre = centre};
}

/// The same for one column of O1 and O2; the result replaces `to`, which is either of the two.
__device__ __forceinline__ void merge_column(float (&to)[2], const float (&first)[2],
                                             const float (&second)[2], const MergeFactors& by) {
  const float shifted = fmaf(by.shift, second[0], second[1]);
  const float o1 = fmaf(first[0], by.first, __fmul_rn(second[0], by.second));
  const float o2 = fmaf(first[1], by.first, __fmul_rn(shifted, by.second));
  to[0] = o1;
  to[1] = o2;
}

enum class StoredKeys : uint8_t { kBefore, kAfter };

/// Adds a stored state of other keys, which come before or after those of `state`.
template <StoredKeys kStored, typename Shape>
__device__ __forceinline__ void add_partial(PartialState<Shape>& partial,
                                            RowExchange<Shape::kRows>& exchange,
                                            ForwardState<Shape>& state) {
  constexpr bool kBefore = kStored == StoredKeys::kBefore;
  __syncthreads();  // the row's statistics were stored by one of its threads
  const RowState stored = partial.rows[state_row()];
  state.row =
      kBefore ? merge_rows(stored, state.row, exchange) : merge_rows(state.row, stored, exchange);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = part_row() + i;
    const MergeFactors by{exchange.factors[0][row], exchange.factors[1][row],
                          exchange.factors[2][row]};
#pragma unroll
    for (int chunk = 0; chunk < Shape::kChunks; ++chunk) {
      const float4 o1 = partial_four(partial, chunk, 0, i), o2 = partial_four(partial, chunk, 1, i);
      const float others[4][2] = {{o1.x, o2.x}, {o1.y, o2.y}, {o1.z, o2.z}, {o1.w, o2.w}};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float own[2] = {state.sums[chunk][0][i][j], state.sums[chunk][1][i][j]};
        if (kBefore)
          merge_column(own, others[j], own, by);
        else
          merge_column(own, own, others[j], by);
        state.sums[chunk][0][i][j] = own[0];
        state.sums[chunk][1][i][j] = own[1];
      }
    }
  }
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    piece_kernel(const __grid_constant__ ForwardCall call, const __grid_constant__ DecodePlan plan,
                 void* workspace) {
  extern __shared__ float4 shared_memory[];
  auto& memory = *reinterpret_cast<ForwardMemory<Shape>*>(shared_memory);
  const AttentionCall& attention = call.attention;
  const RowTile tile = block_row_tile<Shape::kRows>(attention, plan.slots);
  if (tile.num_rows <= 0) return;
  const KeyCut cut = cut_keys(attention, tile.sequence);
  const int worker = blockIdx.y;
  if (worker >= cut.count) return;
  start_forward<Shape>(attention, tile, memory);
  const ItemRange keys = tile_keys(attention, tile);
  const ForwardSources from{key_source(attention.k, attention, tile.sequence, tile.head_kv),
                            key_source(attention.v, attention, tile.sequence, tile.head_kv)};
  PartialState<Shape>* const partial =
      cut.count == 1 ? nullptr : partial_of<Shape>(plan, attention, tile, workspace) + worker;
  ForwardState<Shape> state;
#pragma unroll 1
  for (int piece = worker; piece < cut.count; piece += plan.num_workers) {
    if (piece > worker) {
      store_partial(*partial, state);
      state = {};
    }
    forward_keys<Shape>(attention, tile, from, cut.piece(piece, keys), memory, state);
    if (piece > worker) add_partial<StoredKeys::kBefore>(*partial, memory.rows, state);
  }
  if (cut.count == 1 || plan.num_workers == 1)
    finish_forward<Shape>(call, tile, memory.rows, state);
  else
    store_partial(*partial, state);
}

/// The pieces of a tile, one after the other. Tiles of one piece are finished already.
template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    merge_pieces_kernel(const __grid_constant__ ForwardCall call,
                        const __grid_constant__ DecodePlan plan, void* workspace) {
  extern __shared__ float4 shared_memory[];
  auto& exchange = *reinterpret_cast<RowExchange<Shape::kRows>*>(shared_memory);
  const AttentionCall& attention = call.attention;
  const RowTile tile = block_row_tile<Shape::kRows>(attention, plan.slots);
  if (tile.num_rows <= 0) return;
  const KeyCut cut = cut_keys(attention, tile.sequence);
  if (cut.count == 1) return;
  set_visible<Shape::kRows>(attention, tile, exchange.visible);
  PartialState<Shape>* const partials = partial_of<Shape>(plan, attention, tile, workspace);
  ForwardState<Shape> state;
#pragma unroll 1
  for (int piece = 0; piece < cut.count; ++piece)
    add_partial<StoredKeys::kAfter>(partials[piece], exchange, state);
  finish_forward<Shape>(call, tile, exchange, state);
}

constexpr int kFewRows = 16;
constexpr int kManyRows = 32;

/// Rows of a sequence, on average where the host knows the sum only.
int64_t typical_rows(const AttentionCall& call) {
  const SequenceTable& table = call.sequences;
  const int64_t rows = table.num_queries * call.group;
  if (table.cu_seqlens_q == nullptr || table.num_sequences == 0) return rows;
  return (rows + table.num_sequences - 1) / table.num_sequences;
}

int tile_rows(const AttentionCall& call) {
  return typical_rows(call) <= kFewRows ? kFewRows : kManyRows;
}

DecodePlan make_plan(const AttentionCall& call) {
  const SequenceTable& table = call.sequences;
  const int rows_per_tile = tile_rows(call);
  const int64_t total_rows = table.num_queries * call.group;
  const bool may_cut = table.num_keys > kMinPieceKeys &&
                       (table.cu_seqlens_q != nullptr || total_rows <= kMaxCutRows);
  DecodePlan plan{.slots = row_tile_slots(call, rows_per_tile),
                  .tiles_per_cut_sequence = 0,
                  .num_workers = 1,
                  .num_partials = 0};
  if (!may_cut) return plan;
  const int64_t max_pieces =
      std::min<int64_t>(kMaxPieces, (table.num_keys + kMinPieceKeys - 1) / kMinPieceKeys);
  if (plan.slots.count * call.num_heads_kv < kEnoughBlocks)
    plan.num_workers = static_cast<int>(max_pieces);
  plan.tiles_per_cut_sequence = static_cast<int>(
      (std::min<int64_t>(total_rows, kMaxCutRows) + rows_per_tile - 1) / rows_per_tile);
  plan.num_partials =
      table.num_sequences * plan.tiles_per_cut_sequence * call.num_heads_kv * plan.num_workers;
  return plan;
}

/// Calls body(TileShape) with the shape of the call's tiles.
template <typename Body>
void with_shape(const AttentionCall& call, const Body& body) {
  with_padded_head_dim(call.head_dim, [&](auto padded) {
    if (tile_rows(call) == kFewRows)
      body(TileShape<kFewRows, padded()>{});
    else
      body(TileShape<kManyRows, padded()>{});
  });
}

}  // namespace

int64_t decode_workspace_bytes(const ForwardCall& call) {
  int64_t bytes = 0;
  with_shape(call.attention, [&](auto shape) {
    bytes = make_plan(call.attention).num_partials *
            static_cast<int64_t>(sizeof(PartialState<decltype(shape)>));
  });
  return bytes;
}

void launch_decode(const ForwardCall& call, void* workspace, cudaStream_t stream) {
  const DecodePlan plan = make_plan(call.attention);
  const int64_t num_tiles = plan.slots.count * call.attention.num_heads_kv;
  with_shape(call.attention, [&](auto shape) {
    using Shape = decltype(shape);
    launch_kernel(piece_kernel<Shape>,
                  {.blocks_x = num_tiles,
                   .blocks_y = plan.num_workers,
                   .threads = Shape::kThreads,
                   .shared_bytes = sizeof(ForwardMemory<Shape>),
                   .stream = stream},
                  call, plan, workspace);
    if (plan.num_workers == 1) return;
    launch_kernel(merge_pieces_kernel<Shape>,
                  {.blocks_x = num_tiles,
                   .threads = Shape::kThreads,
                   .shared_bytes = sizeof(RowExchange<Shape::kRows>),
                   .stream = stream},
                  call, plan, workspace);
  });
}

}  // namespace parallax::cuda::portable
