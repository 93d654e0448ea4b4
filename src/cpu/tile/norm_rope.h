// RMSNorm and half-split rotary embedding of rows, forward and backward. With n = x / rms(x),
// R the rotation by the token's angles and g = R^T dy:
//   y = R (gain n)     d_gain = sum g n     dx = (gain g - n mean(gain g n)) / rms(x)
// The backward pass computes rms(x) again: it reads x anyhow, and nothing has to be kept.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/row_access.h"

namespace parallax::cpu {
namespace {

struct RotaryRow {
  const float *cos, *sin;  // [padded]
};

PLX_INLINE RotaryRow rotary_row(const NormRopeInputs& in, int64_t token, const Runs& halves,
                                float* buffer) {
  const Runs half(1, halves.length);
  return {.cos = read_row(in.cos + token * in.cos_stride, DType::kFloat32, half, buffer),
          .sin = read_row(in.sin + token * in.sin_stride, DType::kFloat32, half,
                          buffer + halves.padded)};
}

/// sum a b over a row. Four sums, since one would wait for its own last addition.
PLX_INLINE float dot(const float* a, const float* b, int width) {
  using F = Floats<kVectorFloats>;
  F sums[4]{};
  int d = 0;
  for (; d + 4 * kVectorFloats <= width; d += 4 * kVectorFloats)
    for (int i = 0; i < 4; ++i)
      sums[i] += load<F>(a + d + i * kVectorFloats) * load<F>(b + d + i * kVectorFloats);
  for (; d < width; d += kVectorFloats) sums[0] += load<F>(a + d) * load<F>(b + d);
  return sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

PLX_INLINE float inverse_rms(const float* x, const Grid& grid, float eps, int width) {
  return 1.0f / __builtin_sqrtf(dot(x, x, width) / static_cast<float>(grid.dim) + eps);
}

template <bool kNorm, bool kRotate>
static void norm_rope_rows(const NormRopeInputs& in, const GridTensor<void>& y, RowRange rows,
                           float* scratch) {
  using F = Floats<kVectorFloats>;
  const Runs runs = kRotate ? Runs(2, in.grid.dim / 2) : Runs(1, in.grid.dim);
  const int width = runs.width(), half = runs.padded;
  float* const x_buffer = scratch;
  float* const y_buffer = scratch + width;
  float* const gain_buffer = scratch + 2 * width;
  float* const table_buffer = scratch + 3 * width;
  const float* const gain = kNorm ? read_row(in.gain, in.gain_dtype, runs, gain_buffer) : nullptr;
  RowCursor at(in.grid, rows.begin);
  for (int64_t row = rows.begin; row < rows.end; ++row, at.next()) {
    const float* const x = read_row(row_address(in.x, at), in.x.dtype, runs, x_buffer);
    void* const target = row_address(y, at);
    float* const out = open_row(target, y.dtype, runs, y_buffer);
    const F scale = splat<kVectorFloats>(kNorm ? inverse_rms(x, in.grid, in.eps, width) : 1.0f);
    const auto normed = [&](int d) {
      const F value = load<F>(x + d);
      if constexpr (kNorm) return value * scale * load<F>(gain + d);
      return value;
    };
    if constexpr (kRotate) {
      const RotaryRow table = rotary_row(in, at.n, runs, table_buffer);
      for (int d = 0; d < half; d += kVectorFloats) {
        const F cos = load<F>(table.cos + d), sin = load<F>(table.sin + d);
        const F low = normed(d), high = normed(half + d);
        store(out + d, low * cos - high * sin);
        store(out + half + d, high * cos + low * sin);
      }
    } else {
      for (int d = 0; d < width; d += kVectorFloats) store(out + d, normed(d));
    }
    write_row(target, y.dtype, runs, out);
  }
}

/// target = R^T dy.
PLX_INLINE void rotate_back(float* target, const float* dy, const RotaryRow& table, int half) {
  using F = Floats<kVectorFloats>;
  for (int d = 0; d < half; d += kVectorFloats) {
    const F cos = load<F>(table.cos + d), sin = load<F>(table.sin + d);
    const F low = load<F>(dy + d), high = load<F>(dy + half + d);
    store(target + d, low * cos + high * sin);
    store(target + half + d, high * cos - low * sin);
  }
}

/// One row of dx, from g = R^T dy; adds the row's share to d_gain.
PLX_INLINE void norm_backward_row(float* dx, float* d_gain, const float* x, const float* g,
                                  const float* gain, const Grid& grid, float eps, int width) {
  using F = Floats<kVectorFloats>;
  const float scale = inverse_rms(x, grid, eps, width);
  F sums[2]{};
  int d = 0;
  for (; d + 2 * kVectorFloats <= width; d += 2 * kVectorFloats)
    for (int i = 0; i < 2; ++i) {
      const int at = d + i * kVectorFloats;
      sums[i] += load<F>(g + at) * load<F>(gain + at) * load<F>(x + at);
    }
  for (; d < width; d += kVectorFloats)
    sums[0] += load<F>(g + d) * load<F>(gain + d) * load<F>(x + d);
  const float mean = sum_of_lanes(sums[0] + sums[1]) * scale / static_cast<float>(grid.dim);
  for (d = 0; d < width; d += kVectorFloats) {
    const F n = load<F>(x + d) * scale;
    const F gradient = load<F>(g + d);
    store(d_gain + d, load<F>(d_gain + d) + gradient * n);
    store(dx + d, (gradient * load<F>(gain + d) - n * mean) * scale);
  }
}

template <bool kNorm, bool kRotate>
static void norm_rope_backward_rows(const NormRopeInputs& in, const GridTensor<const void>& dy,
                                    const NormRopeGradients& gradients, RowRange rows,
                                    float* scratch) {
  const Runs runs = kRotate ? Runs(2, in.grid.dim / 2) : Runs(1, in.grid.dim);
  const int width = runs.width();
  float* const x_buffer = scratch;
  float* const dy_buffer = scratch + width;
  float* const g_buffer = scratch + 2 * width;
  float* const dx_buffer = scratch + 3 * width;
  float* const gain_buffer = scratch + 4 * width;
  float* const table_buffer = scratch + 5 * width;
  float* const d_gain = scratch + 6 * width;
  const float* const gain = kNorm ? read_row(in.gain, in.gain_dtype, runs, gain_buffer) : nullptr;
  for (int d = 0; d < width; ++d) d_gain[d] = 0.0f;
  RowCursor at(in.grid, rows.begin);
  for (int64_t row = rows.begin; row < rows.end; ++row, at.next()) {
    void* const target = row_address(gradients.dx, at);
    float* const dx = open_row(target, gradients.dx.dtype, runs, dx_buffer);
    const float* g = read_row(row_address(dy, at), dy.dtype, runs, dy_buffer);
    if constexpr (kRotate) {
      float* const turned = kNorm ? g_buffer : dx;
      rotate_back(turned, g, rotary_row(in, at.n, runs, table_buffer), runs.padded);
      g = turned;
    }
    if constexpr (kNorm) {
      const float* const x = read_row(row_address(in.x, at), in.x.dtype, runs, x_buffer);
      norm_backward_row(dx, d_gain, x, g, gain, in.grid, in.eps, width);
    }
    write_row(target, gradients.dx.dtype, runs, dx);
  }
  if constexpr (kNorm)
    for (int run = 0; run < runs.count; ++run)
      store_row(gradients.d_gain + run * runs.length, DType::kFloat32, d_gain + run * runs.padded,
                runs.length);
}

void norm_rope(const NormRopeInputs& in, const GridTensor<void>& y, RowRange rows, float* scratch) {
  if (in.cos == nullptr)
    norm_rope_rows<true, false>(in, y, rows, scratch);
  else if (in.gain == nullptr)
    norm_rope_rows<false, true>(in, y, rows, scratch);
  else
    norm_rope_rows<true, true>(in, y, rows, scratch);
}

void norm_rope_backward(const NormRopeInputs& in, const GridTensor<const void>& dy,
                        const NormRopeGradients& gradients, RowRange rows, float* scratch) {
  if (in.cos == nullptr)
    norm_rope_backward_rows<true, false>(in, dy, gradients, rows, scratch);
  else if (in.gain == nullptr)
    norm_rope_backward_rows<false, true>(in, dy, gradients, rows, scratch);
  else
    norm_rope_backward_rows<true, true>(in, dy, gradients, rows, scratch);
}

}  // namespace
}  // namespace parallax::cpu
