// Backward in two passes over the pairs, without atomics, so that every gradient has one order of
// its sums (docs/math.md, backward):
//   row constants: lse, t_mean, g_mean = d_out.out_softmax and g_mean - d_out.out of every query
//   query pass:    tiles of rows over the keys they see,   dq += scale ds K    dr += dt K
//   key pass:      tiles of keys over the rows that see them, with all heads of the group,
//                  dk += scale ds' Q + dt' R    dv += w' dO
// with p = exp(s - lse)   w = p (1 + t_mean - t)   g = d_out.v   dt = -p (g - g_mean)
//      ds = w (g - g_mean) + p (g_mean - d_out.out).
// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "cuda/launch_kernel.h"
#include "cuda/portable/launch.h"
#include "cuda/portable/row_tile.cuh"

namespace parallax::cuda::portable {
namespace {

/// What the gradients of a row's scores need, one per token and query head in the workspace.
struct alignas(16) RowConstants {
  float lse, t_mean, g_mean, g_mean_less;
};

constexpr int kKeyTile = 32;

/// Rows of the query pass: three operands of a tile stay in shared memory.
constexpr int query_tile_rows(int padded_head_dim) { return padded_head_dim > 128 ? 16 : 32; }

/// The workspace as a tensor: [tokens of all sequences][query heads].
Operand<RowConstants> constants_operand(const AttentionCall& call, void* workspace) {
  const SequenceTable& table = call.sequences;
  return {.data = static_cast<RowConstants*>(workspace),
          .batch_stride = table.cu_seqlens_q != nullptr ? 0 : table.num_queries * call.num_heads_q,
          .token_stride = call.num_heads_q,
          .head_stride = 1};
}

int64_t num_tokens(const AttentionCall& call) {
  const SequenceTable& table = call.sequences;
  return table.cu_seqlens_q != nullptr ? table.num_queries
                                       : table.num_queries * table.num_sequences;
}

/// Rows of all tokens and query heads: row = token * heads + head, counted from the block's first.
struct FlatRows {
  int64_t batch_stride, token_stride, head_stride;
  int64_t first_row, num_queries;
  int num_heads;

  __device__ __forceinline__ int64_t at(int row) const {
    const int64_t token = (first_row + row) / num_heads;
    const int64_t head = first_row + row - token * num_heads;
    const int64_t batch = token / num_queries;
    return batch * batch_stride + (token - batch * num_queries) * token_stride + head * head_stride;
  }
};

template <typename Tensor>
__device__ __forceinline__ FlatRows flat_rows(const Tensor& tensor, const AttentionCall& call,
                                              int64_t first_row) {
  return {.batch_stride = tensor.batch_stride,
          .token_stride = tensor.token_stride,
          .head_stride = tensor.head_stride,
          .first_row = first_row,
          .num_queries = call.sequences.num_queries,
          .num_heads = call.num_heads_q};
}

constexpr int kConstantRows = 32;
using ConstantShape = TileShape<kConstantRows, kColumns>;

struct ConstantMemory {
  ConstantShape::Stream d_out, others[2];  // out_softmax, out
  float dots[2][kConstantRows];
};

/// g_mean is summed in the order of add_products, so that it equals g bit for bit where out_softmax
/// equals v: a query that sees one key gets zero gradients of its scores, not a rounding error.
__global__ void __launch_bounds__(ConstantShape::kThreads)
    row_constants_kernel(const __grid_constant__ BackwardCall call,
                         const __grid_constant__ Operand<RowConstants> constants,
                         int64_t num_rows) {
  extern __shared__ float4 shared_memory[];
  auto& memory = *reinterpret_cast<ConstantMemory*>(shared_memory);
  const AttentionCall& attention = call.attention;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kConstantRows;
  const ItemRange rows{0, static_cast<int>(min(num_rows - first_row, int64_t{kConstantRows}))};
  const auto source = [&](const Operand<const void>& tensor) {
    return Source<FlatRows>{elements_of(tensor, attention),
                            flat_rows(tensor, attention, first_row)};
  };
  const int row = threadIdx.x % kConstantRows, which = threadIdx.x / kConstantRows;
  float dot = 0.0f;
  for (int chunk = 0; chunk * kColumns < attention.head_dim; ++chunk) {
    load_stream<ConstantShape>(memory.d_out, source(call.d_out), 0, rows, chunk);
    load_stream<ConstantShape>(memory.others[0], source(call.out_softmax), 0, rows, chunk);
    load_stream<ConstantShape>(memory.others[1], source(call.out), 0, rows, chunk);
    if (which >= 2) continue;
    for (int column = 0; column < kColumns; column += 4)
      dot =
          add_dot(*reinterpret_cast<const float4*>(&memory.d_out.items[row][column]),
                  *reinterpret_cast<const float4*>(&memory.others[which].items[row][column]), dot);
  }
  if (which < 2) memory.dots[which][row] = dot;
  __syncthreads();
  if (which != 0 || row >= rows.end) return;
  // A query without visible keys has lse = -inf; every pair with it is hidden, so 0 serves as well.
  const float lse = call.lse.data[flat_rows(call.lse, attention, first_row).at(row)];
  constants.data[first_row + row] = {
      .lse = lse == -INFINITY ? 0.0f : lse,
      .t_mean = call.t_mean.data[flat_rows(call.t_mean, attention, first_row).at(row)],
      .g_mean = memory.dots[0][row],
      .g_mean_less = memory.dots[0][row] - memory.dots[1][row]};
}

/// What a pair of a query and a visible key adds: ds times the softmax scale, dt, and w.
struct PairGradients {
  float ds, dt, w;
};

/// From s = q.k without its scale, t and g.
__device__ __forceinline__ PairGradients pair_gradients(float s, float t, float g,
                                                        const RowConstants& row,
                                                        float softmax_scale) {
  // As in the forward pass the scaled score is rounded before lse is subtracted.
  const float p = expf(__fmul_rn(s, softmax_scale) - row.lse);
  const float deviation = __fmul_rn(p, g - row.g_mean);
  const float a = row.t_mean - t + 1.0f;
  return {.ds = fmaf(a, deviation, __fmul_rn(p, row.g_mean_less)) * softmax_scale,
          .dt = -deviation,
          .w = p * a};
}

template <typename Shape>
struct QueryPassMemory {
  typename Shape::Resident q, r, d_out;
  typename Shape::Stream stream;
  typename Shape::Weights weights[2];  // ds, dt
  RowConstants constants[Shape::kRows];
  ItemRange visible[Shape::kRows];
};

/// ds and dt of a step of keys to shared memory, zeros for hidden pairs.
template <typename Shape>
__device__ __forceinline__ void query_gradients(const AttentionCall& call,
                                                const PairSums (&scores)[2], const PairSums (&g)[1],
                                                int first, QueryPassMemory<Shape>& memory) {
#pragma unroll
  for (int i = 0; i < kPairRows; ++i) {
    const int row = pair_row<Shape>(i);
    const RowConstants constants = memory.constants[row];
    const uint32_t visible = visible_bits(memory.visible[row], first);
#pragma unroll
    for (int j = 0; j < kPairItems; ++j) {
      const int item = pair_item(j);
      const PairGradients pair = pair_gradients(scores[0][i][j], scores[1][i][j], g[0][i][j],
                                                constants, call.softmax_scale);
      const bool sees = has_bit(visible, item);
      memory.weights[0].of[item][row] = sees ? pair.ds : 0.0f;
      memory.weights[1].of[item][row] = sees ? pair.dt : 0.0f;
    }
  }
}

/// Adds the keys of `range` to dq and dr.
template <typename Shape>
__device__ __forceinline__ void query_pass(const AttentionCall& call, const RowTile& tile,
                                           QueryPassMemory<Shape>& memory,
                                           PartSums (&sums)[Shape::kChunks][2]) {
  const Source<KeyRows> k = key_source(call.k, call, tile.sequence, tile.head_kv);
  const Source<KeyRows> v = key_source(call.v, call, tile.sequence, tile.head_kv);
  const ItemRange range = tile_keys(call, tile);
  const Visibility<Shape::kRows> visible{memory.visible, common_keys(call, tile)};
  const float ones[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  for (int first = range.begin / kItems * kItems; first < range.end; first += kItems) {
    PairSums scores[2] = {}, g[1] = {};
#pragma unroll 1
    for (int chunk = 0; chunk * kColumns < call.head_dim; ++chunk) {
      load_stream<Shape>(memory.stream, k, first, range, chunk);
      add_products<Shape, 2>(scores, {&memory.q, &memory.r}, memory.stream, chunk);
      load_stream<Shape>(memory.stream, v, first, range, chunk);
      add_products<Shape, 1>(g, {&memory.d_out}, memory.stream, chunk);
    }
    query_gradients<Shape>(call, scores, g, first, memory);
#pragma unroll 1
    for (int chunk = 0; chunk * kColumns < call.head_dim; ++chunk) {
      load_stream<Shape>(memory.stream, k, first, range, chunk);
      PartSums part[2] = {};
      add_weighted<Shape, 2>(part, memory.weights, memory.stream, visible, first);
      add_parts(sums, chunk, part, ones);
    }
  }
}

/// A thread's rows and columns of a gradient, sums[chunk][which]. `range`: the tile's rows.
template <int kChunks, int kCount, typename Rows>
__device__ __forceinline__ void store_gradient(const Elements<void>& to, const Rows& rows,
                                               const ItemRange& range,
                                               const PartSums (&sums)[kChunks][kCount], int which) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = range.begin + part_row() + i;
    if (row >= range.end) continue;
    const int64_t offset = rows.at(row);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk)
      store_four(to, offset, chunk * kColumns + part_column(), sums[chunk][which][i]);
  }
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    query_pass_kernel(const __grid_constant__ BackwardCall call,
                      const __grid_constant__ TileSlots slots,
                      const __grid_constant__ Operand<RowConstants> constants) {
  extern __shared__ float4 shared_memory[];
  auto& memory = *reinterpret_cast<QueryPassMemory<Shape>*>(shared_memory);
  const AttentionCall& attention = call.attention;
  const RowTile tile = block_row_tile<Shape::kRows>(attention, slots);
  if (tile.num_rows <= 0) return;
  const ItemRange rows{tile.first_row, tile.first_row + tile.num_rows};
  load_resident<Shape>(memory.q, query_source(attention.q, attention, tile), rows.begin, rows);
  load_resident<Shape>(memory.r, query_source(attention.r, attention, tile), rows.begin, rows);
  load_resident<Shape>(memory.d_out, query_source(call.d_out, attention, tile), rows.begin, rows);
  if (threadIdx.x < Shape::kRows) {
    const int row = min(static_cast<int>(threadIdx.x), tile.num_rows - 1);
    memory.constants[threadIdx.x] =
        constants.data[query_rows(constants, tile.sequence, tile.head_kv, tile.group)
                           .at(rows.begin + row)];
  }
  set_visible<Shape::kRows>(attention, tile, memory.visible);
  PartSums sums[Shape::kChunks][2] = {};
  query_pass<Shape>(attention, tile, memory, sums);
  const auto rows_in = [&](const Operand<void>& tensor) {
    return query_rows(tensor, tile.sequence, tile.head_kv, tile.group);
  };
  store_gradient(elements_of(call.dq, attention), rows_in(call.dq), rows, sums, 0);
  store_gradient(elements_of(call.dr, attention), rows_in(call.dr), rows, sums, 1);
}

/// A tile of keys of one key head. Its items are the rows of row_tile.cuh, of all tokens that see
/// one of the keys.
struct KeyTileRange {
  DeviceSequence sequence;
  int head_kv;
  int first_key, num_keys;
  int group;

  /// The rows that see a key.
  __device__ __forceinline__ ItemRange rows_of(const AttentionCall& call, int key) const {
    const QuerySpan queries = visible_queries(call, sequence, key);
    return {queries.begin * group, queries.end * group};
  }
};

template <typename Shape>
struct KeyPassMemory {
  typename Shape::Resident k, v;
  typename Shape::Stream stream;
  typename Shape::Weights weights[3];  // ds, dt, w
  RowConstants constants[kItems];
  ItemRange visible[Shape::kRows];
};

struct KeyPassSources {
  Source<QueryRows> q, r, d_out;
  const RowConstants* constants;
  QueryRows constant_rows;
};

__device__ __forceinline__ KeyPassSources key_pass_sources(const BackwardCall& call,
                                                           const KeyTileRange& tile,
                                                           const Operand<RowConstants>& constants) {
  const auto source = [&](const Operand<const void>& tensor) {
    return Source<QueryRows>{elements_of(tensor, call.attention),
                             query_rows(tensor, tile.sequence, tile.head_kv, tile.group)};
  };
  return {source(call.attention.q), source(call.attention.r), source(call.d_out), constants.data,
          query_rows(constants, tile.sequence, tile.head_kv, tile.group)};
}

/// ds, dt and w of a step of rows to shared memory, zeros for hidden pairs.
template <typename Shape>
__device__ __forceinline__ void key_gradients(const AttentionCall& call, const PairSums& s,
                                              const PairSums& t, const PairSums& g, int first,
                                              KeyPassMemory<Shape>& memory) {
#pragma unroll
  for (int i = 0; i < kPairRows; ++i) {
    const int key = pair_row<Shape>(i);
    const uint32_t visible = visible_bits(memory.visible[key], first);
#pragma unroll
    for (int j = 0; j < kPairItems; ++j) {
      const int item = pair_item(j);
      const PairGradients pair =
          pair_gradients(s[i][j], t[i][j], g[i][j], memory.constants[item], call.softmax_scale);
      const bool sees = has_bit(visible, item);
      memory.weights[0].of[item][key] = sees ? pair.ds : 0.0f;
      memory.weights[1].of[item][key] = sees ? pair.dt : 0.0f;
      memory.weights[2].of[item][key] = sees ? pair.w : 0.0f;
    }
  }
}

/// One step of rows: the scores with all keys of the tile, and their gradients.
template <typename Shape>
__device__ __forceinline__ void key_pass_scores(const AttentionCall& call,
                                                const KeyPassSources& from, int first,
                                                const ItemRange& range,
                                                KeyPassMemory<Shape>& memory) {
  PairSums s[1] = {}, t[1] = {}, g[1] = {};
#pragma unroll 1
  for (int chunk = 0; chunk * kColumns < call.head_dim; ++chunk) {
    load_stream<Shape>(memory.stream, from.q, first, range, chunk);
    add_products<Shape, 1>(s, {&memory.k}, memory.stream, chunk);
    load_stream<Shape>(memory.stream, from.r, first, range, chunk);
    add_products<Shape, 1>(t, {&memory.k}, memory.stream, chunk);
    load_stream<Shape>(memory.stream, from.d_out, first, range, chunk);
    add_products<Shape, 1>(g, {&memory.v}, memory.stream, chunk);
  }
  // The barriers since the last step keep its readers and these writers apart, and one more follows
  // before the first reader.
  if (threadIdx.x < kItems) {
    const int row = min(first + static_cast<int>(threadIdx.x), range.end - 1);
    memory.constants[threadIdx.x] = from.constants[from.constant_rows.at(row)];
  }
  __syncthreads();
  key_gradients<Shape>(call, s[0], t[0], g[0], first, memory);
}

template <typename Shape>
struct KeySums {
  PartSums dk[Shape::kChunks][1] = {}, dv[Shape::kChunks][1] = {};
};

/// Adds the rows of `range` to dk and dv.
template <typename Shape>
__device__ __forceinline__ void key_pass(const AttentionCall& call, const KeyPassSources& from,
                                         const ItemRange& range,
                                         const Visibility<Shape::kRows>& visible,
                                         KeyPassMemory<Shape>& memory, KeySums<Shape>& sums) {
  const float ones[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  for (int first = range.begin; first < range.end; first += kItems) {
    key_pass_scores<Shape>(call, from, first, range, memory);
#pragma unroll 1
    for (int chunk = 0; chunk * kColumns < call.head_dim; ++chunk) {
      PartSums dk[1] = {}, dv[1] = {};
      load_stream<Shape>(memory.stream, from.q, first, range, chunk);
      add_weighted<Shape, 1>(dk, &memory.weights[0], memory.stream, visible, first);
      load_stream<Shape>(memory.stream, from.r, first, range, chunk);
      add_weighted<Shape, 1>(dk, &memory.weights[1], memory.stream, visible, first);
      add_parts(sums.dk, chunk, dk, ones);
      load_stream<Shape>(memory.stream, from.d_out, first, range, chunk);
      add_weighted<Shape, 1>(dv, &memory.weights[2], memory.stream, visible, first);
      add_parts(sums.dv, chunk, dv, ones);
    }
  }
}

__device__ __forceinline__ KeyTileRange block_key_tile(const AttentionCall& call,
                                                       const TileSlots& slots) {
  const TilePlace place = tile_place(slots, blockIdx.x % slots.count);
  const DeviceSequence sequence = device_sequence(call.sequences, place.sequence_idx);
  return {.sequence = sequence,
          .head_kv = static_cast<int>(blockIdx.x / slots.count),
          .first_key = static_cast<int>(place.first_row),
          .num_keys = static_cast<int>(min(sequence.key_end - place.first_row, int64_t{kKeyTile})),
          .group = call.group};
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    key_pass_kernel(const __grid_constant__ BackwardCall call,
                    const __grid_constant__ TileSlots slots,
                    const __grid_constant__ Operand<RowConstants> constants) {
  extern __shared__ float4 shared_memory[];
  auto& memory = *reinterpret_cast<KeyPassMemory<Shape>*>(shared_memory);
  const AttentionCall& attention = call.attention;
  const KeyTileRange tile = block_key_tile(attention, slots);
  if (tile.num_keys <= 0) return;
  const ItemRange keys{tile.first_key, tile.first_key + tile.num_keys};
  load_resident<Shape>(memory.k, key_source(attention.k, attention, tile.sequence, tile.head_kv),
                       keys.begin, keys);
  load_resident<Shape>(memory.v, key_source(attention.v, attention, tile.sequence, tile.head_kv),
                       keys.begin, keys);
  if (threadIdx.x < Shape::kRows) {
    const int key = keys.begin + threadIdx.x;
    memory.visible[threadIdx.x] = key < keys.end ? tile.rows_of(attention, key) : ItemRange{0, 0};
  }
  // Both ends of rows_of grow with the key.
  const ItemRange of_first = tile.rows_of(attention, keys.begin);
  const ItemRange of_last = tile.rows_of(attention, keys.end - 1);
  const Visibility<Shape::kRows> visible{memory.visible, {of_last.begin, of_first.end}};
  KeySums<Shape> sums;
  key_pass<Shape>(attention, key_pass_sources(call, tile, constants), {of_first.begin, of_last.end},
                  visible, memory, sums);
  const auto rows_in = [&](const Operand<void>& tensor) {
    return key_rows(tensor, attention.sequences, tile.sequence, tile.head_kv);
  };
  store_gradient(elements_of(call.dk, attention), rows_in(call.dk), keys, sums.dk, 0);
  store_gradient(elements_of(call.dv, attention), rows_in(call.dv), keys, sums.dv, 0);
}

void launch_row_constants(const BackwardCall& call, const Operand<RowConstants>& constants,
                          cudaStream_t stream) {
  const int64_t num_rows = num_tokens(call.attention) * call.attention.num_heads_q;
  launch_kernel(row_constants_kernel,
                {.blocks_x = (num_rows + kConstantRows - 1) / kConstantRows,
                 .threads = ConstantShape::kThreads,
                 .shared_bytes = sizeof(ConstantMemory),
                 .stream = stream},
                call, constants, num_rows);
}

}  // namespace

int64_t backward_workspace_bytes(const BackwardCall& call) {
  return num_tokens(call.attention) * call.attention.num_heads_q *
         static_cast<int64_t>(sizeof(RowConstants));
}

void launch_backward(const BackwardCall& call, void* workspace, cudaStream_t stream) {
  const AttentionCall& attention = call.attention;
  const SequenceTable& table = attention.sequences;
  const Operand<RowConstants> constants = constants_operand(attention, workspace);
  with_padded_head_dim(attention.head_dim, [&](auto padded) {
    using QueryShape = TileShape<query_tile_rows(padded()), padded()>;
    using KeyShape = TileShape<kKeyTile, padded()>;
    const TileSlots row_slots = row_tile_slots(attention, QueryShape::kRows);
    const TileSlots key_slots =
        make_tile_slots(table.cu_seqlens_k, table.num_sequences, table.num_keys, 1, kKeyTile);
    launch_row_constants(call, constants, stream);
    launch_kernel(query_pass_kernel<QueryShape>,
                  {.blocks_x = row_slots.count * attention.num_heads_kv,
                   .threads = QueryShape::kThreads,
                   .shared_bytes = sizeof(QueryPassMemory<QueryShape>),
                   .stream = stream},
                  call, row_slots, constants);
    launch_kernel(key_pass_kernel<KeyShape>,
                  {.blocks_x = key_slots.count * attention.num_heads_kv,
                   .threads = KeyShape::kThreads,
                   .shared_bytes = sizeof(KeyPassMemory<KeyShape>),
                   .stream = stream},
                  call, key_slots, constants);
  });
}

}  // namespace parallax::cuda::portable
