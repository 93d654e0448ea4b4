// What the row kernels are told: RMSNorm and rotary embedding in one pass, and SwiGLU, each with
// its gradients. Plain structs, for the reason that kernels.h gives.
//
// Legend: as in core/row_grid.h.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/row_grid.h"
#include "parallax/dtype.h"

namespace parallax::cpu {

using core::Grid;
using core::GridTensor;

/// The rows begin .. end.
struct RowRange {
  int64_t begin, end;
};

/// y = rotate(gain x / sqrt(mean(x^2) + eps)). Without a gain nothing is normalised, without tables
/// nothing is rotated; one of the two is there.
struct NormRopeInputs {
  Grid grid;
  GridTensor<const void> x;
  const void* gain;  // [D], or null
  DType gain_dtype;
  float eps;
  const float *cos, *sin;  // [N][D / 2], or null
  int64_t cos_stride, sin_stride;
};

struct NormRopeGradients {
  GridTensor<void> dx;
  float* d_gain;  // [D], written: the sum over the range's rows. Unused without a gain.
};

/// y = silu(gate) * up.
struct SwigluInputs {
  Grid grid;
  GridTensor<const void> gate, up;
};

struct SwigluGradients {
  GridTensor<void> d_gate, d_up;
};

/// Elements of a row that SwiGLU widens at a time: its buffers stay in the first cache.
constexpr int kSwigluChunk = 512;

/// Floats of scratch memory: rows and chunks are padded to whole vectors.
constexpr int64_t norm_rope_scratch_floats(int64_t dim) { return 7 * (dim + 32); }
constexpr int64_t swiglu_scratch_floats() { return 5 * kSwigluChunk; }

/// One instruction set's row kernels; scratch is 64-byte aligned. Each computes in float32, rounds
/// once, and gives a row the same bits whatever range it is in.
struct RowKernels {
  void (*norm_rope)(const NormRopeInputs&, const GridTensor<void>& y, RowRange, float* scratch);
  void (*norm_rope_backward)(const NormRopeInputs&, const GridTensor<const void>& dy,
                             const NormRopeGradients&, RowRange, float* scratch);
  void (*swiglu)(const SwigluInputs&, const GridTensor<void>& y, RowRange, float* scratch);
  void (*swiglu_backward)(const SwigluInputs&, const GridTensor<const void>& dy,
                          const SwigluGradients&, RowRange, float* scratch);
};

}  // namespace parallax::cpu
