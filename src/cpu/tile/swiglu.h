// SwiGLU of rows, forward and backward. With s = sigmoid(gate):
//   y = gate s up     d_up = dy gate s     d_gate = dy up s (1 + gate (1 - s))
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/row_access.h"

namespace parallax::cpu {
namespace {

struct Sigmoid {
  Floats<kVectorFloats> value, rest;  // s and 1 - s, neither by subtraction
};

PLX_INLINE Sigmoid sigmoid(Floats<kVectorFloats> x) {
  using F = Floats<kVectorFloats>;
  const F e = exponential<kVectorFloats>(x < 0.0f ? x : -x);  // of -|x|: never overflows
  const F inverse = 1.0f / (e + 1.0f);
  const F small = e * inverse;
  return {.value = x < 0.0f ? small : inverse, .rest = x < 0.0f ? inverse : small};
}

/// Calls body(elements before the chunk, chunk, row position) for all chunks of all rows.
template <typename Body>
PLX_INLINE void for_each_chunk(const Grid& grid, RowRange rows, Body body) {
  RowCursor at(grid, rows.begin);
  for (int64_t row = rows.begin; row < rows.end; ++row, at.next())
    for (int first = 0; first < grid.dim; first += kSwigluChunk) {
      const int left = grid.dim - first;
      body(first, Runs(1, left < kSwigluChunk ? left : kSwigluChunk), at);
    }
}

template <typename Pointee>
PLX_INLINE Pointee* chunk_address(const GridTensor<Pointee>& tensor, const RowCursor& at,
                                  int first) {
  return advance(row_address(tensor, at), tensor.dtype, first);
}

PLX_INLINE const float* read_chunk(const GridTensor<const void>& tensor, const RowCursor& at,
                                   int first, const Runs& chunk, float* buffer) {
  return read_row(chunk_address(tensor, at, first), tensor.dtype, chunk, buffer);
}

void swiglu(const SwigluInputs& in, const GridTensor<void>& y, RowRange rows, float* scratch) {
  using F = Floats<kVectorFloats>;
  for_each_chunk(in.grid, rows, [&](int first, const Runs& chunk, const RowCursor& at) {
    const float* const gate = read_chunk(in.gate, at, first, chunk, scratch);
    const float* const up = read_chunk(in.up, at, first, chunk, scratch + chunk.padded);
    void* const target = chunk_address(y, at, first);
    float* const out = open_row(target, y.dtype, chunk, scratch + 2 * chunk.padded);
    for (int d = 0; d < chunk.padded; d += kVectorFloats) {
      const F x = load<F>(gate + d);
      store(out + d, x * sigmoid(x).value * load<F>(up + d));
    }
    write_row(target, y.dtype, chunk, out);
  });
}

void swiglu_backward(const SwigluInputs& in, const GridTensor<const void>& dy,
                     const SwigluGradients& gradients, RowRange rows, float* scratch) {
  using F = Floats<kVectorFloats>;
  for_each_chunk(in.grid, rows, [&](int first, const Runs& chunk, const RowCursor& at) {
    const float* const gate = read_chunk(in.gate, at, first, chunk, scratch);
    const float* const up = read_chunk(in.up, at, first, chunk, scratch + chunk.padded);
    const float* const d_out = read_chunk(dy, at, first, chunk, scratch + 2 * chunk.padded);
    void* const gate_target = chunk_address(gradients.d_gate, at, first);
    void* const up_target = chunk_address(gradients.d_up, at, first);
    float* const d_gate =
        open_row(gate_target, gradients.d_gate.dtype, chunk, scratch + 3 * chunk.padded);
    float* const d_up =
        open_row(up_target, gradients.d_up.dtype, chunk, scratch + 4 * chunk.padded);
    for (int d = 0; d < chunk.padded; d += kVectorFloats) {
      const F x = load<F>(gate + d), gradient = load<F>(d_out + d);
      const Sigmoid s = sigmoid(x);
      store(d_up + d, gradient * (x * s.value));
      store(d_gate + d, gradient * load<F>(up + d) * (s.value * (x * s.rest + 1.0f)));
    }
    write_row(gate_target, gradients.d_gate.dtype, chunk, d_gate);
    write_row(up_target, gradients.d_up.dtype, chunk, d_up);
  });
}

}  // namespace
}  // namespace parallax::cpu
