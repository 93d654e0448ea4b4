// SPDX-License-Identifier: Apache-2.0
#include "cpu/row_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/check_tensor.h"
#include "core/dispatch.h"
#include "core/thread_pool.h"
#include "cpu/row_tiles.h"
#include "cpu/scratch.h"

namespace parallax::cpu {
namespace {

using core::Argument;

/// The arguments of one call, checked as they come.
class Checks {
 public:
  Checks(std::string name, const ConstTensorView& view) : first_{std::move(name), view} {
    check_values(first_);
    PLX_CHECK(dim() >= 1 && dim() <= std::numeric_limits<int>::max() / 16, first_.name,
              " has shape ", core::shape_text(view), "; its last dimension must not be empty");
    inputs_.push_back(first_);
  }

  void input_alike(std::string name, const ConstTensorView& view) {
    add_alike(inputs_, std::move(name), view);
  }
  void output_alike(std::string name, const TensorView& view) {
    add_alike(outputs_, std::move(name), view);
  }
  /// A vector along the last dimension.
  void input_vector(std::string name, const ConstTensorView& view) {
    add_vector(inputs_, std::move(name), view);
  }
  void output_vector(std::string name, const TensorView& view) {
    add_vector(outputs_, std::move(name), view);
  }
  void tables(const ConstTensorView& cos, const ConstTensorView& sin) {
    const ConstTensorView& x = first_.view;
    PLX_CHECK(x.rank >= 3 && dim() % 2 == 0, first_.name, " has shape ", core::shape_text(x),
              "; to be rotated it must be [.., N, H, D] with an even D");
    for (const Argument& table : {Argument{"cos", cos}, Argument{"sin", sin}}) {
      core::check_present(table);
      core::check_dtype(table, DType::kFloat32, "tables are");
      core::check_shape(table, {{x.size(x.rank - 3), dim() / 2}, "[N, D / 2] of " + first_.name});
      core::check_innermost_stride(table);
      inputs_.push_back(table);
    }
  }

  /// What holds for all of them together.
  void finish() const {
    for (const auto* list : {&inputs_, &outputs_})
      for (const Argument& argument : *list)
        PLX_CHECK(argument.view.device.type == DeviceType::kCpu, argument.name,
                  " is not in CPU memory");
    for (const Argument& output : outputs_) core::check_writable(output);
    core::check_overlaps(inputs_, outputs_);
  }

 private:
  int64_t dim() const { return first_.view.size(first_.view.rank - 1); }

  static void check_values(const Argument& argument) {
    core::check_present(argument);
    const DType dtype = argument.view.dtype;
    PLX_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16,
              argument.name, " is ", name(dtype), "; it must be float32, bfloat16 or float16");
    core::check_innermost_stride(argument);
  }
  void add_alike(std::vector<Argument>& list, std::string name, const ConstTensorView& view) {
    const Argument argument{std::move(name), view};
    check_values(argument);
    const auto& sizes = first_.view.sizes;
    core::check_shape(argument, {{sizes.begin(), sizes.begin() + first_.view.rank},
                                 "the shape of " + first_.name});
    list.push_back(argument);
  }
  void add_vector(std::vector<Argument>& list, std::string name, const ConstTensorView& view) {
    const Argument argument{std::move(name), view};
    check_values(argument);
    core::check_shape(argument, {{dim()}, "[D] of " + first_.name});
    list.push_back(argument);
  }

  Argument first_;
  std::vector<Argument> inputs_, outputs_;
};

Grid grid_of(const ConstTensorView& tensor) {
  Grid grid{.sizes = {1, 1, 1}, .dim = static_cast<int>(tensor.size(tensor.rank - 1))};
  for (int dim = 0; dim < tensor.rank - 1; ++dim)
    grid.sizes[4 - tensor.rank + dim] = tensor.size(dim);
  return grid;
}

template <typename Pointee>
GridTensor<Pointee> rows_of(const BasicTensorView<Pointee>& tensor) {
  GridTensor<Pointee> rows{.data = tensor.data, .dtype = tensor.dtype, .strides = {}};
  for (int dim = 0; dim < tensor.rank - 1; ++dim)
    rows.strides[4 - tensor.rank + dim] = tensor.stride(dim);
  return rows;
}

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

/// Arguments of the forward and backward pass alike.
template <typename Args>
void check_norm_rope(Checks& checks, const Args& args) {
  const bool rotates = args.cos.defined() || args.sin.defined();
  PLX_CHECK(args.gain.defined() || rotates,
            "norm_rope: got neither a gain nor cos and sin, so there is nothing to compute");
  PLX_CHECK(args.eps >= 0 && std::isfinite(args.eps), "norm_rope: eps is ", args.eps,
            "; it must be 0 or positive");
  if (args.gain.defined()) checks.input_vector("gain", args.gain);
  if (rotates) checks.tables(args.cos, args.sin);
}

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

void norm_rope(const Kernels& kernels, const NormRopeArgs& args) {
  Checks checks("x", args.x);
  check_norm_rope(checks, args);
  checks.output_alike("y", args.y);
  checks.finish();
  const NormRopeInputs inputs = norm_rope_inputs(args);
  const GridTensor<void> y = rows_of(args.y);
  Blocks::of_norm(inputs.grid).run([&](int64_t, RowRange rows, float* scratch) {
    kernels.rows.norm_rope(inputs, y, rows, scratch);
  });
}

void norm_rope_backward(const Kernels& kernels, const NormRopeBackwardArgs& args) {
  Checks checks("x", args.x);
  check_norm_rope(checks, args);
  checks.input_alike("dy", args.dy);
  checks.output_alike("dx", args.dx);
  if (args.gain.defined()) checks.output_vector("d_gain", args.d_gain);
  checks.finish();
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

void swiglu(const Kernels& kernels, const SwigluArgs& args) {
  Checks checks("gate", args.gate);
  checks.input_alike("up", args.up);
  checks.output_alike("y", args.y);
  checks.finish();
  const SwigluInputs inputs{
      .grid = grid_of(args.gate), .gate = rows_of(args.gate), .up = rows_of(args.up)};
  const GridTensor<void> y = rows_of(args.y);
  Blocks::of_swiglu(inputs.grid).run([&](int64_t, RowRange rows, float* scratch) {
    kernels.rows.swiglu(inputs, y, rows, scratch);
  });
}

void swiglu_backward(const Kernels& kernels, const SwigluBackwardArgs& args) {
  Checks checks("gate", args.gate);
  checks.input_alike("up", args.up);
  checks.input_alike("dy", args.dy);
  checks.output_alike("d_gate", args.d_gate);
  checks.output_alike("d_up", args.d_up);
  checks.finish();
  const SwigluInputs inputs{
      .grid = grid_of(args.gate), .gate = rows_of(args.gate), .up = rows_of(args.up)};
  const GridTensor<const void> dy = rows_of(args.dy);
  const SwigluGradients gradients{.d_gate = rows_of(args.d_gate), .d_up = rows_of(args.d_up)};
  Blocks::of_swiglu(inputs.grid).run([&](int64_t, RowRange rows, float* scratch) {
    kernels.rows.swiglu_backward(inputs, dy, gradients, rows, scratch);
  });
}

}  // namespace parallax::cpu
