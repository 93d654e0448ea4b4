// How the row kernels walk over the rows of strided tensors and see each as fp32 vectors.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/row_kernels.h"
#include "cpu/tile/rows.h"

namespace parallax::cpu {
namespace {

/// Steps through the rows of a grid in order.
struct RowCursor {
  const Grid& grid;
  int64_t b, n, h;

  RowCursor(const Grid& rows, int64_t row)
      : grid(rows),
        b(row / (rows.sizes[1] * rows.sizes[2])),
        n(row / rows.sizes[2] % rows.sizes[1]),
        h(row % rows.sizes[2]) {}

  void next() {
    if (++h < grid.sizes[2]) return;
    h = 0;
    if (++n < grid.sizes[1]) return;
    n = 0;
    ++b;
  }
};

template <typename Pointee>
PLX_INLINE Pointee* row_address(const GridTensor<Pointee>& tensor, const RowCursor& at) {
  return advance(tensor.data, tensor.dtype,
                 at.b * tensor.strides[0] + at.n * tensor.strides[1] + at.h * tensor.strides[2]);
}

/// A row as `count` runs of `length` floats, each followed by zeros up to `padded`, a whole number
/// of vectors: one run, or two halves that rotate into each other.
struct Runs {
  int count, length, padded;

  Runs(int run_count, int run_length)
      : count(run_count),
        length(run_length),
        padded((run_length + kVectorFloats - 1) / kVectorFloats * kVectorFloats) {}

  int width() const { return count * padded; }
  /// Whether a tensor's row already lies like this.
  bool fit(DType dtype) const { return dtype == DType::kFloat32 && length == padded; }
};

/// The row in runs: where it lies if it fits, else widened into `buffer`.
PLX_INLINE const float* read_row(const void* source, DType dtype, const Runs& runs, float* buffer) {
  if (runs.fit(dtype)) return static_cast<const float*>(source);
  for (int run = 0; run < runs.count; ++run)
    load_row(buffer + run * runs.padded, advance(source, dtype, run * runs.length), dtype,
             runs.length, runs.padded);
  return buffer;
}

/// Where to write a row in runs, before write_row() takes it to the tensor: the tensor itself if
/// the runs fit, else `buffer`.
PLX_INLINE float* open_row(void* target, DType dtype, const Runs& runs, float* buffer) {
  return runs.fit(dtype) ? static_cast<float*>(target) : buffer;
}

PLX_INLINE void write_row(void* target, DType dtype, const Runs& runs, const float* row) {
  if (row == target) return;
  for (int run = 0; run < runs.count; ++run)
    store_row(advance(target, dtype, run * runs.length), dtype, row + run * runs.padded,
              runs.length);
}

}  // namespace
}  // namespace parallax::cpu
