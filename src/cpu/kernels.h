// The tile kernels of the CPU backend, and the plain structs that describe one tile to them. The
// kernels are compiled once per instruction set (kernels_*.cc) from the same source (tile/), so
// this header holds data only: an inline function here, compiled with AVX-512 and then picked by
// the linker for all, would crash an older machine.
//
// Legend: row = one (token, head of the group) pair of a sequence and key head, numbered
// token * group + head; D head size, Dp = D rounded up to kPadding.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "parallax/dtype.h"

namespace parallax::cpu {

/// Rows per query tile. A tile of at most kNarrowRows rows (decoding) has its own narrower kernel.
constexpr int kWideRows = 32;
constexpr int kNarrowRows = 8;
/// Keys per tile.
constexpr int kKeyTile = 64;
/// Head sizes are padded with zeros to a multiple of the widest vector, in floats.
constexpr int kPadding = 16;

/// Floats of scratch memory that any kernel needs.
constexpr int64_t scratch_floats(int64_t padded_dim) { return 9 * 64 * padded_dim + 5 * 64 * 64; }

/// Rows of one sequence and the heads of one group. `dtype` is float32, bfloat16 or float16.
template <typename Pointee>
struct RowTensor {
  Pointee* data;
  DType dtype;
  int64_t token_stride;
  int64_t head_stride;
};

/// One number per row; data is null for an absent output.
template <typename Number>
struct RowScalars {
  Number* data;
  int64_t token_stride;
  int64_t head_stride;
};

/// Keys or values of one sequence and head. Key j lies at j * token_stride or, if `pages` is not
/// null, at pages[j / page_size] * page_stride + (j % page_size) * token_stride.
struct KeyTensor {
  const void* data;
  DType dtype;
  int64_t token_stride;
  const int32_t* pages;
  int64_t page_size;
  int64_t page_stride;
};

/// Token i sees the keys max(begin, i + begin_offset) <= j < min(end, i + end_offset).
struct Band {
  int64_t begin, end;
  int64_t begin_offset, end_offset;
};

/// What forward and backward tiles share.
struct TileInputs {
  RowTensor<const void> q, r;
  KeyTensor k, v;
  Band band;
  int64_t group;  // heads per key head
  int head_dim;
  float softmax_scale;
};

/// The rows first_row .. first_row + num_rows against the keys key_begin .. key_end.
struct QueryTile {
  int64_t first_row, num_rows;
  int64_t key_begin, key_end;
};

/// Running sums of M rows, M = kWideRows or kNarrowRows, over the keys seen so far, with
/// w = exp(s - max): sums[d][0 .. M) = sum w v_d,
/// sums[d][M .. 2M) = sum w (t - centre) v_d.
struct TileState {
  float* sums;    // [Dp][2 M]
  float* max;     // [M] of s, -inf before the first visible key
  float* weight;  // [M] sum w
  float* t_sum;   // [M] sum w (t - centre)
  float* centre;  // [M] weighted mean of t over the first tile with a visible key
};
constexpr int64_t state_floats(int64_t padded_dim, int rows) { return (2 * padded_dim + 4) * rows; }

struct ForwardOutputs {
  RowTensor<void> out, out_softmax;  // out_softmax.data may be null
  RowScalars<float> lse, t_mean;     // so may these
};

struct BackwardInputs {
  TileInputs tile;
  RowTensor<const void> d_out, out, out_softmax;
  RowScalars<const float> lse, t_mean;
};

/// Per-row numbers that the query pass leaves for the key pass.
struct RowStats {
  float lse;  // 0 for a row without keys
  float t_mean;
  float g_mean;       // d_out . out_softmax
  float g_mean_less;  // d_out . out_softmax - d_out . out
};

struct QueryGradients {
  RowTensor<void> dq, dr;
  RowStats* stats;  // [rows of the sequence], written for the tile's rows
};

/// The keys first_key .. first_key + num_keys (at most kKeyTile) against rows row_begin .. row_end.
struct KeyTile {
  int64_t first_key, num_keys;
  int64_t row_begin, row_end;
  const RowStats* stats;
  RowTensor<void> dk, dv;  // head_stride unused
};

/// One instruction set's kernels. `rows` is kWideRows or kNarrowRows; scratch is 64-byte aligned
/// and holds scratch_floats(Dp).
struct Kernels {
  const char* isa;
  /// Starts `state` and runs over the tile's keys.
  void (*forward)(const TileInputs&, const QueryTile&, int rows, const TileState&, float* scratch);
  /// state <- the state over the keys of both. An empty `other` changes nothing.
  void (*merge)(const TileState& state, const TileState& other, int head_dim, int rows);
  /// Writes the outputs of the tile's rows.
  void (*finish)(const TileInputs&, const QueryTile&, int rows, const TileState&,
                 const ForwardOutputs&, float* scratch);
  void (*backward_query)(const BackwardInputs&, const QueryTile&, const QueryGradients&,
                         float* scratch);
  void (*backward_key)(const BackwardInputs&, const KeyTile&, float* scratch);
  /// y = e^x as the kernels compute it, for tests.
  void (*exponential)(const float* x, float* y, int64_t count);
};

/// The kernels that this build has and this machine can run, best first; never empty.
struct KernelList {
  const Kernels* entries[3];
  int count;
};
KernelList usable_kernels();

}  // namespace parallax::cpu
