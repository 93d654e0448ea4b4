// SwiGLU, forward and backward. With s = sigmoid(gate):
//   y = gate s up     d_up = dy gate s     d_gate = dy up s (1 + gate (1 - s))
// A thread computes one chunk of a row. Tensors without gaps are one row, whatever their shape.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "cuda/device_info.h"
#include "cuda/launch_kernel.h"
#include "cuda/row_ops/row_ops.h"
#include "cuda/row_ops/rows.cuh"

namespace parallax::cuda {
namespace row_ops {
namespace {

/// Where the chunks are: `dim` elements of each row, in row_chunks chunks.
struct Chunks {
  RowGrid grid;
  int64_t dim;
  uint32_t row_chunks, count;
};

struct ChunkPlace {
  RowPlace row;
  int64_t column;
  int count;  // of elements
};

__device__ __forceinline__ ChunkPlace chunk_place(const Chunks& chunks, uint32_t idx) {
  const uint32_t row = idx < chunks.row_chunks ? 0 : idx / chunks.row_chunks;
  const int64_t column = static_cast<int64_t>(idx - row * chunks.row_chunks) * kChunk;
  const int64_t left = chunks.dim - column;
  return {place_of(chunks.grid, row), column, left < kChunk ? static_cast<int>(left) : kChunk};
}

__device__ __forceinline__ uint32_t thread_chunk() { return blockIdx.x * kThreads + threadIdx.x; }

struct Sigmoid {
  float value, rest;  // s and 1 - s, neither by subtraction
};

__device__ __forceinline__ Sigmoid sigmoid(float x) {
  const float e = expf(-fabsf(x));  // never overflows
  const float inverse = 1.0f / (e + 1.0f);
  const float small = e * inverse;
  return {.value = x < 0.0f ? small : inverse, .rest = x < 0.0f ? inverse : small};
}

__device__ __forceinline__ RawChunk load_at(const Rows<const void>& from, const ChunkPlace& at) {
  return load_chunk(from, at.row.in(from) + at.column, at.count);
}
__device__ __forceinline__ void store_at(const Rows<void>& to, const ChunkPlace& at,
                                         const Chunk& chunk) {
  store_chunk(to, at.row.in(to) + at.column, at.count, chunk);
}

__global__ void __launch_bounds__(kThreads)
    swiglu_kernel(const __grid_constant__ Chunks chunks,
                  const __grid_constant__ Rows<const void> gate,
                  const __grid_constant__ Rows<const void> up,
                  const __grid_constant__ Rows<void> y) {
  if (thread_chunk() >= chunks.count) return;
  const ChunkPlace at = chunk_place(chunks, thread_chunk());
  const RawChunk raw_gate = load_at(gate, at), raw_up = load_at(up, at);
  const Chunk x = widened(raw_gate, gate.dtype), factor = widened(raw_up, up.dtype);
  Chunk result;
#pragma unroll
  for (int i = 0; i < kChunk; ++i)
    result.values[i] = x.values[i] * sigmoid(x.values[i]).value * factor.values[i];
  store_at(y, at, result);
}

struct Gradients {
  Rows<void> d_gate, d_up;
};

__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(const __grid_constant__ Chunks chunks,
                           const __grid_constant__ Rows<const void> dy,
                           const __grid_constant__ Rows<const void> gate,
                           const __grid_constant__ Rows<const void> up,
                           const __grid_constant__ Gradients to) {
  if (thread_chunk() >= chunks.count) return;
  const ChunkPlace at = chunk_place(chunks, thread_chunk());
  const RawChunk raw_gate = load_at(gate, at), raw_up = load_at(up, at), raw_dy = load_at(dy, at);
  const Chunk x = widened(raw_gate, gate.dtype), factor = widened(raw_up, up.dtype);
  const Chunk gradient = widened(raw_dy, dy.dtype);
  Chunk d_gate, d_up;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    const float value = x.values[i];
    const Sigmoid s = sigmoid(value);
    d_up.values[i] = gradient.values[i] * (value * s.value);
    d_gate.values[i] =
        gradient.values[i] * factor.values[i] * (s.value * fmaf(value, s.rest, 1.0f));
  }
  store_at(to.d_gate, at, d_gate);
  store_at(to.d_up, at, d_up);
}

/// Merges the dimensions of all tensors as far as they lie side by side, the last one too.
template <typename... Tensors>
Chunks make_chunks(core::Grid& grid, Tensors&... tensors) {
  int64_t dim = grid.dim;
  merge_rows(grid, tensors...);
  const bool one_row = grid.sizes[0] * grid.sizes[1] == 1 &&
                       (grid.sizes[2] == 1 || ((tensors.strides[2] == dim) && ...));
  if (one_row) {
    dim *= grid.sizes[2];
    grid.sizes[2] = 1;
  }
  const RowGrid rows = row_grid(grid, "swiglu");
  const int64_t row_chunks = divide_up(dim, kChunk);
  constexpr int64_t kMaxCount = std::numeric_limits<uint32_t>::max() - kThreads;
  PLX_CHECK(row_chunks * rows.num_rows <= kMaxCount, "swiglu: the tensors have ", rows.num_rows,
            " rows of ", dim, " elements; on CUDA devices there may be at most ", kMaxCount,
            " chunks of ", kChunk, " in one call");
  return {.grid = rows,
          .dim = dim,
          .row_chunks = static_cast<uint32_t>(row_chunks),
          .count = static_cast<uint32_t>(row_chunks * rows.num_rows)};
}

LaunchShape shape_of(const Chunks& chunks, const Execution& execution) {
  return {.blocks_x = divide_up(chunks.count, kThreads),
          .threads = kThreads,
          .stream = static_cast<cudaStream_t>(execution.stream)};
}

}  // namespace
}  // namespace row_ops

void swiglu(const core::SwigluArgs& args) {
  using namespace row_ops;
  const DeviceGuard guard(args.gate.device.index);
  core::Grid grid = core::grid_of(args.gate);
  auto gate = core::rows_of(args.gate), up = core::rows_of(args.up);
  auto y = core::rows_of(args.y);
  const Chunks chunks = make_chunks(grid, gate, up, y);
  launch_kernel(swiglu_kernel, shape_of(chunks, args.execution), chunks, kernel_rows(gate, grid),
                kernel_rows(up, grid), kernel_rows(y, grid));
}

void swiglu_backward(const core::SwigluBackwardArgs& args) {
  using namespace row_ops;
  const DeviceGuard guard(args.gate.device.index);
  core::Grid grid = core::grid_of(args.gate);
  auto dy = core::rows_of(args.dy), gate = core::rows_of(args.gate), up = core::rows_of(args.up);
  auto d_gate = core::rows_of(args.d_gate), d_up = core::rows_of(args.d_up);
  const Chunks chunks = make_chunks(grid, dy, gate, up, d_gate, d_up);
  const Gradients to{kernel_rows(d_gate, grid), kernel_rows(d_up, grid)};
  launch_kernel(swiglu_backward_kernel, shape_of(chunks, args.execution), chunks,
                kernel_rows(dy, grid), kernel_rows(gate, grid), kernel_rows(up, grid), to);
}

}  // namespace parallax::cuda
