// RMSNorm and half-split rotary embedding, backward. With n = x / rms(x) and g = R^T dy:
//   dx = (gain g - n mean(gain g n)) / rms(x)     d_gain = sum over rows of g n
// rms(x) is computed again: x is read anyhow. A block takes neighbouring rows and leaves one sum
// of g n for them in the workspace, [blocks][D] floats; a second kernel adds those, always in one
// order. How many blocks there are depends on the shape alone, not on the device.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "cuda/device_info.h"
#include "cuda/launch_kernel.h"
#include "cuda/row_ops/norm_rope.cuh"
#include "cuda/row_ops/row_ops.h"

namespace parallax::cuda {
namespace row_ops {
namespace {

struct BackwardCall {
  NormRopeCall call;
  Rows<const void> dy;
  Rows<void> dx;
  uint32_t block_rows;
  float* parts;  // [blocks][dim], null without a gain
};

/// sums[0] += x x   sums[1] += gain g x
template <typename Config>
__device__ __forceinline__ void add_sums(float (&sums)[2], const Unit<Config>& x,
                                         const Unit<Config>& g, const Unit<Config>& gain) {
#pragma unroll
  for (int part = 0; part < Config::kParts; ++part)
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const float value = x.parts[part].values[i];
      sums[0] = fmaf(value, value, sums[0]);
      sums[1] = fmaf(g.parts[part].values[i] * gain.parts[part].values[i], value, sums[1]);
    }
}

/// g becomes dx, and x becomes g n.
template <typename Config>
__device__ __forceinline__ void differentiate(Unit<Config>& g, Unit<Config>& x,
                                              const Unit<Config>& gain, float scale, float mean) {
#pragma unroll
  for (int part = 0; part < Config::kParts; ++part)
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      float& gradient = g.parts[part].values[i];
      const float n = x.parts[part].values[i] * scale;
      x.parts[part].values[i] = gradient * n;
      gradient = (gradient * gain.parts[part].values[i] - n * mean) * scale;
    }
}

/// The sums of g n of a block's threads, in shared memory: registers would spill. Neighbouring
/// threads have neighbouring float4s.
template <typename Config>
struct GainSums {
  static constexpr int kFours = kChunk / 4;
  static constexpr size_t kBytes =
      sizeof(float4) * kThreads * Config::kUnits * Config::kParts * kFours;

  float4* memory;

  __device__ __forceinline__ float4& four(int k, int part, int i, int thread) const {
    return memory[((k * Config::kParts + part) * kFours + i) * kThreads + thread];
  }
  __device__ __forceinline__ void clear() const {
    for (int i = 0; i < Config::kUnits * Config::kParts * kFours; ++i)
      memory[i * kThreads + threadIdx.x] = make_float4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void add(int k, const Unit<Config>& unit) const {
#pragma unroll
    for (int part = 0; part < Config::kParts; ++part)
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const float* const values = unit.parts[part].values + 4 * i;
        float4& sum = four(k, part, i, threadIdx.x);
        sum =
            make_float4(sum.x + values[0], sum.y + values[1], sum.z + values[2], sum.w + values[3]);
      }
  }
  /// Of a column, over the groups of the block.
  __device__ __forceinline__ float total(const NormRopeCall& call, const Group& group,
                                         int column) const {
    const int part = column < call.run ? 0 : 1, in_part = column - part * call.run;
    const int unit = in_part / kChunk, element = in_part % kChunk;
    const int k = unit / group.size, lane = unit % group.size;
    float sum = 0.0f;
    for (int i = 0; i < group.count; ++i)
      sum += reinterpret_cast<const float*>(
          &four(k, part, element / 4, i * group.size + lane))[element % 4];
    return sum;
  }
};

enum class Row : uint8_t { kFirst, kLater };  // of a block

/// The same for rows too long for that, in the workspace, where each column has its one thread.
template <typename Config>
__device__ __forceinline__ void add_in_workspace(float* sums, const Columns& columns, int k,
                                                 const Unit<Config>& unit, Row row) {
#pragma unroll
  for (int part = 0; part < Config::kParts; ++part)
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (i >= columns.count(k)) continue;
      float& sum = sums[columns.of(k) + part * columns.run + i];
      sum = unit.parts[part].values[i] + (row == Row::kFirst ? 0.0f : sum);
    }
}

template <typename Config>
__global__ void __launch_bounds__(kThreads, Config::kNorm ? 2 : 4)
    norm_rope_backward_kernel(const __grid_constant__ BackwardCall backward) {
  extern __shared__ float norm_rope_memory[];
  constexpr bool kSumsInMemory = Config::kNorm && !Config::kLong;
  const GainSums<Config> gain_sums{reinterpret_cast<float4*>(norm_rope_memory + kSumFloats)};
  if (kSumsInMemory) gain_sums.clear();
  const NormRopeCall& call = backward.call;
  const Group group(call.group_log2);
  const uint32_t begin = blockIdx.x * backward.block_rows;
  const uint32_t end = min(int64_t{begin} + backward.block_rows, int64_t{call.grid.num_rows});
  const int passes = Config::kLong ? call.passes : 1;
  float* const part_of_block =
      Config::kNorm ? backward.parts + static_cast<int64_t>(blockIdx.x) * call.dim : nullptr;
  // All groups make as many steps: their threads meet at barriers.
  for (uint32_t first = begin; first < end; first += group.count) {
    const uint32_t row = first + group.index;
    const bool exists = row < end;
    const RowPlace at = place_of(call.grid, exists ? row : begin);
    const int64_t x_row = at.in(call.x), dy_row = at.in(backward.dy), dx_row = at.in(backward.dx);
    Tile<Config> x, dy;
    float scale = 1.0f, mean = 0.0f;
    const auto gradient = [&](const Columns& columns, int k) {
      Unit<Config> g = unit_of(dy, k, backward.dy.dtype);
      turn<Turn::kBack>(g, call, at, columns, k);
      return g;
    };
    if constexpr (Config::kNorm) {
      float sums[2] = {};
      for (int pass = 0; pass < passes; ++pass) {
        const Columns columns = columns_of<Config>(call, group, pass, exists);
        load_tile(x, call.x, x_row, columns);
        load_tile(dy, backward.dy, dy_row, columns);
#pragma unroll
        for (int k = 0; k < Config::kUnits; ++k)
          add_sums(sums, unit_of(x, k, call.x.dtype), gradient(columns, k),
                   load_gain<Config>(call, columns, k));
      }
      sum_over_group(sums, group, norm_rope_memory);
      scale = inverse_rms(sums[0], call);
      mean = sums[1] * scale / static_cast<float>(call.dim);
    }
    for (int pass = 0; pass < passes; ++pass) {
      const Columns columns = columns_of<Config>(call, group, pass, exists);
      if (Config::kNorm && Config::kLong) load_tile(x, call.x, x_row, columns);
      if (!Config::kNorm || Config::kLong) load_tile(dy, backward.dy, dy_row, columns);
#pragma unroll
      for (int k = 0; k < Config::kUnits; ++k) {
        Unit<Config> g = gradient(columns, k);
        if constexpr (Config::kNorm) {
          Unit<Config> gain_term = unit_of(x, k, call.x.dtype);
          differentiate(g, gain_term, load_gain<Config>(call, columns, k), scale, mean);
          if (Config::kLong)
            add_in_workspace(part_of_block, columns, k, gain_term,
                             first == begin ? Row::kFirst : Row::kLater);
          else if (exists)  // else 0 over the root of eps, which may be 0
            gain_sums.add(k, gain_term);
        }
        store_unit(backward.dx, dx_row, columns, k, g);
      }
    }
  }
  if constexpr (kSumsInMemory) {
    __syncthreads();
    for (int column = threadIdx.x; column < call.dim; column += kThreads)
      part_of_block[column] = gain_sums.total(call, group, column);
  }
}

constexpr int kColumns = 32, kStrands = 32;

/// d_gain = the sum of the parts: strand s of 32 adds the parts s, s + 32, ..., and one thread the
/// strands.
__global__ void __launch_bounds__(kColumns* kStrands)
    sum_parts_kernel(const float* parts, int64_t num_parts, int dim,
                     const __grid_constant__ Rows<void> d_gain) {
  extern __shared__ float norm_rope_memory[];
  const int lane = threadIdx.x % kColumns, strand = threadIdx.x / kColumns;
  const int column = blockIdx.x * kColumns + lane;
  float sum = 0.0f;
  if (column < dim)
#pragma unroll 4
    for (int64_t part = strand; part < num_parts; part += kStrands)
      sum += parts[part * dim + column];
  norm_rope_memory[strand * kColumns + lane] = sum;
  __syncthreads();
  if (strand > 0 || column >= dim) return;
  Chunk total{};
  for (int i = 0; i < kStrands; ++i) total.values[0] += norm_rope_memory[i * kColumns + lane];
  store_chunk(d_gain, column, 1, total);
}

/// How the rows are cut. A part costs 8 D bytes of traffic, so a block has at least 16 rounds of
/// rows if there are enough for 256 blocks; 1024 blocks fill any device.
struct Blocks {
  int64_t count, rows;

  static Blocks of(const NormRopeCall& call) {
    const int64_t rows_of_round = kThreads >> call.group_log2;
    const int64_t num_rounds = divide_up(call.grid.num_rows, rows_of_round);
    if (call.gain.data == nullptr) return {num_rounds, rows_of_round};
    const int64_t wanted = std::clamp<int64_t>(num_rounds / 16, 256, 1024);
    const int64_t rounds = divide_up(std::max<int64_t>(num_rounds, 1), wanted);
    return {divide_up(num_rounds, rounds), rounds * rows_of_round};
  }
};

/// The tensors of a call, and the kernel's view of them.
BackwardCall make_call(const core::NormRopeBackwardArgs& args) {
  core::Grid grid = core::grid_of(args.x);
  auto x = core::rows_of(args.x), dy = core::rows_of(args.dy);
  auto dx = core::rows_of(args.dx);
  if (!args.cos.defined()) merge_rows(grid, x, dy, dx);
  BackwardCall backward{};
  backward.call = make_norm_rope_call(args, grid, x);
  const int half = backward.call.dim - backward.call.run;
  backward.dy = kernel_rows(dy, grid, half);
  backward.dx = kernel_rows(dx, grid, half);
  backward.block_rows = static_cast<uint32_t>(Blocks::of(backward.call).rows);
  return backward;
}

void launch_sum(const core::NormRopeBackwardArgs& args, int64_t num_parts, cudaStream_t stream) {
  const auto dim = static_cast<int>(args.d_gain.size(0));
  const Rows<void> d_gain{
      .data = args.d_gain.data, .dtype = args.d_gain.dtype, .aligned = false, .strides = {}};
  launch_kernel(sum_parts_kernel,
                {.blocks_x = divide_up(dim, kColumns),
                 .threads = kColumns * kStrands,
                 .shared_bytes = kColumns * kStrands * sizeof(float),
                 .stream = stream},
                static_cast<const float*>(args.execution.workspace), num_parts, dim, d_gain);
}

}  // namespace
}  // namespace row_ops

int64_t workspace_bytes(const core::NormRopeBackwardArgs& args) {
  if (!args.gain.defined()) return 0;
  const row_ops::NormRopeCall call = row_ops::make_call(args).call;
  return row_ops::Blocks::of(call).count * call.dim * static_cast<int64_t>(sizeof(float));
}

void norm_rope_backward(const core::NormRopeBackwardArgs& args) {
  using namespace row_ops;
  const DeviceGuard guard(args.x.device.index);
  BackwardCall backward = make_call(args);
  const NormRopeCall& call = backward.call;
  const Blocks blocks = Blocks::of(call);
  const auto stream = static_cast<cudaStream_t>(args.execution.stream);
  backward.parts = static_cast<float*>(args.execution.workspace);
  with_config(call, [&](auto config) {
    using Config = decltype(config);
    launch_kernel(norm_rope_backward_kernel<Config>,
                  {.blocks_x = blocks.count,
                   .threads = kThreads,
                   .shared_bytes =
                       kSumBytes + (Config::kNorm && !Config::kLong ? GainSums<Config>::kBytes : 0),
                   .stream = stream},
                  backward);
  });
  if (args.gain.defined()) launch_sum(args, blocks.count, stream);
}

}  // namespace parallax::cuda
