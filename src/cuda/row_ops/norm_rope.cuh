// What the forward and backward kernels of norm_rope share: a call, the threads of a row, and the
// part of a row that each of them holds.
//
// A row belongs to a group of 1 to 256 threads, a power of two that the row's size decides. A unit
// is a chunk of neighbours, or with a rotation the two chunks that turn into each other; thread i
// of a group of G takes the units i, i + G, ... The whole row is then in registers between its sums
// and its results. Rows that are too long for 256 threads (kLong) go by in passes, twice.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include "cuda/row_ops/rows.cuh"

namespace parallax::cuda::row_ops {

struct NormRopeCall {
  RowGrid grid;
  int dim;
  int run;         // elements of a row that lie side by side and do not rotate into each other
  int group_log2;  // threads of a row
  int passes;      // 1 unless kLong
  float eps;
  Rows<const void> x, gain, cos, sin;  // absent: data is null
};

template <bool kNormValue, bool kRotateValue, bool kLongValue>
struct NormRopeConfig {
  static constexpr bool kNorm = kNormValue, kRotate = kRotateValue, kLong = kLongValue;
  static constexpr int kParts = kRotate ? 2 : 1;  // chunks of a unit
  static constexpr int kUnits = kRotate ? 1 : 4;  // of a thread in a pass
};

/// The threads of a row.
struct Group {
  int size, lane;    // lane: of this thread, 0 .. size - 1
  int index, count;  // of this group in the block, and how many there are

  __device__ __forceinline__ explicit Group(int log2)
      : size(1 << log2),
        lane(threadIdx.x & ((1 << log2) - 1)),
        index(threadIdx.x >> log2),
        count(kThreads >> log2) {}
};

/// The sums over a group, the same bits in all of its threads. Called by all threads of the block;
/// `memory` is shared, kCount floats for each warp.
template <int kCount>
__device__ __forceinline__ void sum_over_group(float (&sums)[kCount], const Group& group,
                                               float* memory) {
  constexpr int kWarp = 32;
  for (int lanes = min(group.size, kWarp) / 2; lanes > 0; lanes /= 2)
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += __shfl_xor_sync(~0u, sums[i], lanes);
  if (group.size <= kWarp) return;
  const int warp = threadIdx.x / kWarp, num_warps = group.size / kWarp;
  __syncthreads();  // the last call's sums have been read
  if (threadIdx.x % kWarp == 0)
#pragma unroll
    for (int i = 0; i < kCount; ++i) memory[warp * kCount + i] = sums[i];
  __syncthreads();
  const float* const first = memory + warp / num_warps * num_warps * kCount;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    sums[i] = first[i];
    for (int w = 1; w < num_warps; ++w) sums[i] += first[w * kCount + i];
  }
}

/// The columns of a thread in one pass: unit k is at first + k step, a second chunk `run` later.
struct Columns {
  int first, step, run;
  int limit;  // run, or 0 for a row that does not exist

  __device__ __forceinline__ int of(int unit) const { return first + unit * step; }
  /// Elements of the unit's chunk that exist; not positive for none, any number from kChunk on for
  /// a whole one.
  __device__ __forceinline__ int count(int unit) const { return limit - of(unit); }
};

template <typename Config>
__device__ __forceinline__ Columns columns_of(const NormRopeCall& call, const Group& group,
                                              int pass, bool exists) {
  return {.first = (pass * Config::kUnits * group.size + group.lane) * kChunk,
          .step = group.size * kChunk,
          .run = call.run,
          .limit = exists ? call.run : 0};
}

/// A thread's part of a row in one pass.
template <typename Config>
struct Tile {
  RawChunk raw[Config::kUnits][Config::kParts];
};

template <typename Config>
__device__ __forceinline__ void load_tile(Tile<Config>& tile, const Rows<const void>& from,
                                          int64_t row, const Columns& columns) {
#pragma unroll
  for (int k = 0; k < Config::kUnits; ++k)
#pragma unroll
    for (int part = 0; part < Config::kParts; ++part)
      tile.raw[k][part] =
          load_chunk(from, row + columns.of(k) + part * columns.run, columns.count(k));
}

template <typename Config>
struct Unit {
  Chunk parts[Config::kParts];
};

template <typename Config>
__device__ __forceinline__ Unit<Config> unit_of(const Tile<Config>& tile, int k, DType dtype) {
  Unit<Config> unit;
#pragma unroll
  for (int part = 0; part < Config::kParts; ++part)
    unit.parts[part] = widened(tile.raw[k][part], dtype);
  return unit;
}

/// The gain's, which every row shares.
template <typename Config>
__device__ __forceinline__ Unit<Config> load_gain(const NormRopeCall& call, const Columns& columns,
                                                  int k) {
  Unit<Config> unit;
#pragma unroll
  for (int part = 0; part < Config::kParts; ++part)
    unit.parts[part] =
        widened(load_chunk(call.gain, columns.of(k) + part * columns.run, columns.count(k)),
                call.gain.dtype);
  return unit;
}

template <typename Config>
__device__ __forceinline__ void store_unit(const Rows<void>& to, int64_t row,
                                           const Columns& columns, int k,
                                           const Unit<Config>& unit) {
#pragma unroll
  for (int part = 0; part < Config::kParts; ++part)
    store_chunk(to, row + columns.of(k) + part * columns.run, columns.count(k), unit.parts[part]);
}

/// Turns the unit by the angles of its token, forward or back.
enum class Turn : uint8_t { kForward, kBack };

template <Turn kTurn, typename Config>
__device__ __forceinline__ void turn(Unit<Config>& unit, const NormRopeCall& call,
                                     const RowPlace& at, const Columns& columns, int k) {
  if constexpr (Config::kRotate) {
    const int column = columns.of(k), count = columns.count(k);
    const Chunk cos =
        widened(load_chunk(call.cos, at.in(call.cos) + column, count), DType::kFloat32);
    const Chunk sin =
        widened(load_chunk(call.sin, at.in(call.sin) + column, count), DType::kFloat32);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const float low = unit.parts[0].values[i], high = unit.parts[1].values[i];
      const float c = cos.values[i];
      const float s = kTurn == Turn::kForward ? sin.values[i] : -sin.values[i];
      unit.parts[0].values[i] = low * c - high * s;
      unit.parts[1].values[i] = high * c + low * s;
    }
  }
}

__device__ __forceinline__ float inverse_rms(float sum_of_squares, const NormRopeCall& call) {
  return 1.0f / sqrtf(sum_of_squares / static_cast<float>(call.dim) + call.eps);
}

/// Of shared memory, for sum_over_group of two sums.
inline constexpr int kSumFloats = kThreads / 32 * 2;
inline constexpr size_t kSumBytes = kSumFloats * sizeof(float);

// The host's side.

/// body(NormRopeConfig) for the call.
template <typename Body>
void with_config(const NormRopeCall& call, const Body& body) {
  const auto with = [&](auto norm, auto rotate) {
    if (call.passes > 1)
      body(NormRopeConfig<norm(), rotate(), true>{});
    else
      body(NormRopeConfig<norm(), rotate(), false>{});
  };
  if (call.cos.data == nullptr)
    with(std::true_type{}, std::false_type{});
  else if (call.gain.data == nullptr)
    with(std::false_type{}, std::true_type{});
  else
    with(std::true_type{}, std::true_type{});
}

/// Of NormRopeArgs or NormRopeBackwardArgs, from x and the grid of its rows after merge_rows().
template <typename Args>
NormRopeCall make_norm_rope_call(const Args& args, const core::Grid& grid,
                                 const core::GridTensor<const void>& x) {
  const bool rotates = args.cos.defined();
  NormRopeCall call{};
  call.grid = row_grid(grid, "norm_rope");
  call.dim = grid.dim;
  call.run = rotates ? grid.dim / 2 : grid.dim;
  call.eps = static_cast<float>(args.eps);
  const int half = rotates ? call.run : 0;
  call.x = kernel_rows(x, grid, half);
  // Tensors without rows of their own: a gain is one row for all, tables have one for each token.
  const auto shared = [&](const ConstTensorView& tensor, int64_t token_stride, int distance) {
    return kernel_rows(
        core::GridTensor<const void>{
            .data = tensor.data, .dtype = tensor.dtype, .strides = {0, token_stride, 0}},
        grid, distance);
  };
  if (args.gain.defined()) call.gain = shared(args.gain, 0, half);
  if (rotates) {
    call.cos = shared(args.cos, args.cos.stride(0), 0);
    call.sin = shared(args.sin, args.sin.stride(0), 0);
  }
  const int num_units = (call.run + kChunk - 1) / kChunk;
  const int units_of_thread = rotates ? NormRopeConfig<true, true, false>::kUnits
                                      : NormRopeConfig<true, false, false>::kUnits;
  while ((units_of_thread << call.group_log2) < num_units && 1 << call.group_log2 < kThreads)
    ++call.group_log2;
  const int units_of_pass = units_of_thread << call.group_log2;
  call.passes = (num_units + units_of_pass - 1) / units_of_pass;
  return call;
}

}  // namespace parallax::cuda::row_ops
