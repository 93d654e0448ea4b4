// SPDX-License-Identifier: Apache-2.0
#include "cpu/row_ops.h"

#include <algorithm>
#include <vector>

#include "core/dispatch.h"
#include "core/thread_pool.h"
#include "cpu/row_tiles.h"
#include "cpu/scratch.h"

namespace parallax::cpu {
namespace {

using core::grid_of;
using core::rows_of;

/// The rows of a grid in blocks of about 2^15 elements: enough work for a task, and still in cache.
struct Blocks {
  int64_t num_rows, block_rows, scratch_floats;

  static Blocks of_norm(const Grid& grid) {
    // Each block has its own sum for the gain's gradient, hence not too few rows.
    return {grid, 16, norm_rope_scratch_floats(grid.dim)};
  }
  static Blocks of_swiglu(const Grid& grid) { return {grid, 1, swiglu_scratch_floats()}; }

  int64_t count() const { return divide_up(num_rows, block_rows); }

  template <typename Body>
  void run(Body body) const {
    core::parallel_for(count(), [&](int64_t block) {
      const int64_t begin = block * block_rows;
      body(block, RowRange{begin, std::min(begin + block_rows, num_rows)},
           thread_scratch(scratch_floats));
    });
  }

 private:
  Blocks(const Grid& grid, int64_t least_rows, int64_t floats)
      : num_rows(grid.sizes[0] * grid.sizes[1] * grid.sizes[2]),
        block_rows(std::max(least_rows, (int64_t{1} << 15) / grid.dim)),
        scratch_floats(floats) {}
};

template <typename Args>
NormRopeInputs norm_rope_inputs(const Args& args) {
  return {.grid = grid_of(args.x),
          .x = rows_of(args.x),
          .gain = args.gain.data,
          .gain_dtype = args.gain.dtype,
          .eps = static_cast<float>(args.eps),
          .cos = static_cast<const float*>(args.cos.data),
          .sin = static_cast<const float*>(args.sin.data),
          .cos_stride = args.cos.strides[0],
          .sin_stride = args.sin.strides[0]};
}

/// target [D] = the sum of the blocks' parts, in their order; `parts` [blocks][D] is used up.
void add_parts(const TensorView& target, std::vector<float>& parts, int64_t num_blocks) {
  const auto size = static_cast<size_t>(target.size(0));
  for (size_t block = 1; block < static_cast<size_t>(num_blocks); ++block)
    for (size_t d = 0; d < size; ++d) parts[d] += parts[block * size + d];
  core::dispatch_dtype<float, BFloat16, Float16>(target.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* const values = static_cast<T*>(target.data);
    for (size_t d = 0; d < size; ++d) values[d] = static_cast<T>(parts[d]);
  });
}

}  // namespace

void norm_rope(const Kernels& kernels, const core::NormRopeArgs& args) {
  const NormRopeInputs inputs = norm_rope_inputs(args);
  const GridTensor<void> y = rows_of(args.y);
  Blocks::of_norm(inputs.grid).run([&](int64_t, RowRange rows, float* scratch) {
    kernels.rows.norm_rope(inputs, y, rows, scratch);
  });
}

void norm_rope_backward(const Kernels& kernels, const core::NormRopeBackwardArgs& args) {
  const NormRopeInputs inputs = norm_rope_inputs(args);
  const GridTensor<const void> dy = rows_of(args.dy);
  const GridTensor<void> dx = rows_of(args.dx);
  const Blocks blocks = Blocks::of_norm(inputs.grid);
  const int64_t num_parts = args.gain.defined() ? std::max<int64_t>(blocks.count(), 1) : 0;
  std::vector<float> parts(static_cast<size_t>(num_parts * inputs.grid.dim));
  blocks.run([&](int64_t block, RowRange rows, float* scratch) {
    float* const part = num_parts == 0 ? nullptr : parts.data() + block * inputs.grid.dim;
    kernels.rows.norm_rope_backward(inputs, dy, {.dx = dx, .d_gain = part}, rows, scratch);
  });
  if (args.gain.defined()) add_parts(args.d_gain, parts, num_parts);
}

void swiglu(const Kernels& kernels, const core::SwigluArgs& args) {
  const SwigluInputs inputs{
      .grid = grid_of(args.gate), .gate = rows_of(args.gate), .up = rows_of(args.up)};
  const GridTensor<void> y = rows_of(args.y);
  Blocks::of_swiglu(inputs.grid).run([&](int64_t, RowRange rows, float* scratch) {
    kernels.rows.swiglu(inputs, y, rows, scratch);
  });
}

void swiglu_backward(const Kernels& kernels, const core::SwigluBackwardArgs& args) {
  const SwigluInputs inputs{
      .grid = grid_of(args.gate), .gate = rows_of(args.gate), .up = rows_of(args.up)};
  const GridTensor<const void> dy = rows_of(args.dy);
  const SwigluGradients gradients{.d_gate = rows_of(args.d_gate), .d_up = rows_of(args.d_up)};
  Blocks::of_swiglu(inputs.grid).run([&](int64_t, RowRange rows, float* scratch) {
    kernels.rows.swiglu_backward(inputs, dy, gradients, rows, scratch);
  });
}

}  // namespace parallax::cpu
