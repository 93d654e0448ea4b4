// RMSNorm and half-split rotary embedding, forward: y = R (gain x / rms(x)), R the rotation by the
// token's angles.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "cuda/device_info.h"
#include "cuda/launch_kernel.h"
#include "cuda/row_ops/norm_rope.cuh"
#include "cuda/row_ops/row_ops.h"

namespace parallax::cuda {
namespace row_ops {
namespace {

template <typename Config>
__device__ __forceinline__ void add_squares(float& sum, const Tile<Config>& tile, DType dtype) {
#pragma unroll
  for (int k = 0; k < Config::kUnits; ++k) {
    const Unit<Config> x = unit_of(tile, k, dtype);
#pragma unroll
    for (int part = 0; part < Config::kParts; ++part)
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        sum = fmaf(x.parts[part].values[i], x.parts[part].values[i], sum);
  }
}

template <typename Config>
__global__ void __launch_bounds__(kThreads)
    norm_rope_kernel(const __grid_constant__ NormRopeCall call,
                     const __grid_constant__ Rows<void> y) {
  extern __shared__ float norm_rope_memory[];
  const Group group(call.group_log2);
  const uint32_t row = blockIdx.x * group.count + group.index;
  const bool exists = row < call.grid.num_rows;
  const RowPlace at = place_of(call.grid, exists ? row : 0);
  const int64_t x_row = at.in(call.x), y_row = at.in(y);
  const int passes = Config::kLong ? call.passes : 1;
  Tile<Config> x;
  float scale = 1.0f;
  if constexpr (Config::kNorm) {
    float sums[1] = {};
    for (int pass = 0; pass < passes; ++pass) {
      load_tile(x, call.x, x_row, columns_of<Config>(call, group, pass, exists));
      add_squares(sums[0], x, call.x.dtype);
    }
    sum_over_group(sums, group, norm_rope_memory);
    scale = inverse_rms(sums[0], call);
  }
  for (int pass = 0; pass < passes; ++pass) {
    const Columns columns = columns_of<Config>(call, group, pass, exists);
    if (!Config::kNorm || Config::kLong) load_tile(x, call.x, x_row, columns);
#pragma unroll
    for (int k = 0; k < Config::kUnits; ++k) {
      Unit<Config> unit = unit_of(x, k, call.x.dtype);
      if constexpr (Config::kNorm) {
        const Unit<Config> gain = load_gain<Config>(call, columns, k);
#pragma unroll
        for (int part = 0; part < Config::kParts; ++part)
#pragma unroll
          for (int i = 0; i < kChunk; ++i)
            unit.parts[part].values[i] *= scale * gain.parts[part].values[i];
      }
      turn<Turn::kForward>(unit, call, at, columns, k);
      store_unit(y, y_row, columns, k, unit);
    }
  }
}

}  // namespace
}  // namespace row_ops

Support supports_row_ops(const Device& device) {
  return supports_device("norm_rope and swiglu", device, kMinCapability);
}

void norm_rope(const core::NormRopeArgs& args) {
  using namespace row_ops;
  const DeviceGuard guard(args.x.device.index);
  core::Grid grid = core::grid_of(args.x);
  auto x = core::rows_of(args.x);
  auto y = core::rows_of(args.y);
  if (!args.cos.defined()) merge_rows(grid, x, y);
  const NormRopeCall call = make_norm_rope_call(args, grid, x);
  const int64_t rows_of_block = kThreads >> call.group_log2;
  with_config(call, [&](auto config) {
    using Config = decltype(config);
    launch_kernel(norm_rope_kernel<Config>,
                  {.blocks_x = divide_up(call.grid.num_rows, rows_of_block),
                   .threads = kThreads,
                   .shared_bytes = kSumBytes,
                   .stream = static_cast<cudaStream_t>(args.execution.stream)},
                  call, kernel_rows(y, grid, call.dim - call.run));
  });
}

}  // namespace parallax::cuda
