// The kernels of the CPU, and the plain structs that describe one tile to them. The
// kernels are compiled once per instruction set (kernels_*.cc) from the same source (tile/), so
// this header holds data only: an inline function here, compiled with AVX-512 and then picked by
// the linker for all, would crash an older machine.
//
// Legend: row = one (token, head of the group) pair of a sequence and key head, numbered
// token * group + head; D head size, Dp = D rounded up to kPadding.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "cpu/row_kernels.h"
#include "parallax/dtype.h"

namespace parallax::cpu {

/// Rows of the narrow kernels, for decoding: a tile with more rows goes to the wide ones.
constexpr int kNarrowRows = 8;
/// Head sizes are padded with zeros to a multiple of the widest vector, in floats. Matrix units
/// take twice as many 16-bit numbers.
constexpr int kPadding = 16;

constexpr int kMaxHeadDim = 256;
/// Key heads that a narrow kernel takes at once.
constexpr int kMaxTileHeads = 16;

/// Rows of packed operands are packed in blocks of this many.
constexpr int kPackedRows = 32;

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

/// Rows of one sequence and head as a matrix unit takes them: blocks of kPackedRows rows, 16-bit
/// numbers, zeros for what is missing. Block b holds rows b * kPackedRows .. of the sequence (keys
/// count from 0 whatever the band), Dp * kPackedRows numbers of it per array.
///   tiles       [2][Dp / 32][16 rows][32 of D]
///   transposed  [Dp / 16][16 of D][32 rows]
///   not_finite  bit i of word b: row i of block b holds a NaN or an infinity
struct PackedRows {
  const uint16_t* tiles;
  const uint16_t* transposed;
  const uint32_t* not_finite;
};

/// What forward and backward tiles share.
struct TileInputs {
  RowTensor<const void> q, r;
  KeyTensor k, v;
  PackedRows packed_k, packed_v;  // null for kernels that read k and v where they lie
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

/// Running sums of M rows over the keys seen so far, with w = exp(s - max):
/// sums[d][0 .. M) = sum w v_d, sums[d][M .. 2M) = sum w (t - centre) v_d.
struct TileState {
  float* sums;    // [Dp][2 M]
  float* max;     // [M] of s, -inf before the first visible key
  float* weight;  // [M] sum w
  float* t_sum;   // [M] sum w (t - centre)
  float* centre;  // [M] weighted mean of t over the first tile with a visible key
  // The sums of w and w (t - centre) as rounded for the products: what `sums` is divided by, so
  // that rounding changes the weights of a mean and not their sum. Zeros from kernels that round
  // nothing.
  float* rounded_weight;
  float* rounded_t_sum;
};
constexpr int64_t state_floats(int64_t padded_dim, int rows) { return (2 * padded_dim + 6) * rows; }

/// Tiles at the same rows and keys of several key heads of one sequence.
struct HeadTiles {
  const TileInputs* inputs;
  const TileState* states;
  int count;  // up to kMaxTileHeads
};

struct ForwardOutputs {
  RowTensor<void> out, out_softmax;  // out_softmax.data may be null
  RowScalars<float> lse, t_mean;     // so may these
};

struct BackwardInputs {
  TileInputs tile;
  RowTensor<const void> d_out, out, out_softmax;
  RowScalars<const float> lse, t_mean;
  PackedRows packed_q, packed_r, packed_d_out;  // the key pass's, as packed_k
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

/// The keys first_key .. first_key + num_keys against rows row_begin .. row_end.
struct KeyTile {
  int64_t first_key, num_keys;
  int64_t row_begin, row_end;
  const RowStats* stats;
  RowTensor<void> dk, dv;  // head_stride unused
};

/// Where a tile of rows stands among those that add to the gradients of one tile of keys.
struct KeyTurn {
  bool is_first, is_last;
};

/// The order in which the tiles of rows add to the gradients of a sequence and key head, for each
/// tile of key_tile keys. Between wait() and pass() the calling tile alone may touch them.
struct KeyTurns {
  void* queue;
  /// Returns when all tiles before this one have added theirs.
  KeyTurn (*wait)(void* queue, int64_t key_tile);
  void (*pass)(void* queue, int64_t key_tile);
};

struct FusedGradients {
  RowTensor<void> dq, dr;
  RowTensor<void> dk, dv;            // head_stride unused here and below
  RowTensor<void> dk_sums, dv_sums;  // float32, from the first turn to the last; may be dk and dv
  KeyTurns turns;
};

/// One block of kPackedRows rows to pack, bfloat16: of `keys`, or of `rows` if that is null. Rows
/// outside begin .. end count as zeros. Either array may be null.
struct PackJob {
  const KeyTensor* keys;
  const RowTensor<const void>* rows;
  int64_t group;
  int64_t first_row;
  int64_t begin, end;
  int head_dim;
  uint16_t *tiles, *transposed;
  uint32_t* not_finite;
};

/// Kernels for one instruction set. `rows` is wide_rows or kNarrowRows; scratch is 64-byte aligned
/// and holds scratch_floats(Dp).
struct Kernels {
  const char* isa;
  int wide_rows;   // rows of a wide tile
  int key_tile;    // keys of a tile of backward
  int fused_rows;  // rows of a tile of the fused backward
  int padding;     // Dp is head_dim rounded up to this
  int64_t scratch_per_dim, scratch_fixed;
  /// Packs operands; null: these kernels need none.
  void (*pack)(const PackJob&);
  /// Heads are computed in waves that pack at least so many bytes and have at least so many tiles
  /// (packed_operand.h), or are all that is left.
  int64_t wave_bytes, wave_tiles;
  /// Starts `state` and runs over the tile's keys.
  void (*forward)(const TileInputs&, const QueryTile&, int rows, const TileState&, float* scratch);
  /// forward() for kNarrowRows rows of several key heads.
  void (*narrow_forward)(const HeadTiles&, const QueryTile&, float* scratch);
  /// state <- the state over the keys of both. An empty `other` changes nothing.
  void (*merge)(const TileState& state, const TileState& other, int head_dim, int rows);
  /// Writes the outputs of the tile's rows.
  void (*finish)(const TileInputs&, const QueryTile&, int rows, const TileState&,
                 const ForwardOutputs&, float* scratch);
  /// Backward in one pass over tiles of up to fused_rows rows; null: built in two passes.
  void (*fused_backward)(const BackwardInputs&, const QueryTile&, const FusedGradients&,
                         float* scratch);
  /// The two passes; null: built in one.
  void (*backward_query)(const BackwardInputs&, const QueryTile&, const QueryGradients&,
                         float* scratch);
  void (*backward_key)(const BackwardInputs&, const KeyTile&, float* scratch);
  RowKernels rows;
  /// y = e^x as the kernels compute it, for tests.
  void (*exponential)(const float* x, float* y, int64_t count);

  int64_t padded_dim(int64_t head_dim) const {
    return (head_dim + padding - 1) / padding * padding;
  }
  int64_t scratch_floats(int64_t padded_dim) const {
    return scratch_per_dim * padded_dim + scratch_fixed;
  }
};

/// An instruction set and its kernels by dtype.
struct InstructionSet {
  const char* name;
  const Kernels* floats;     // float32 and float16
  const Kernels* bfloat16s;  // the same ones, unless the set has products of its own for them
  /// Rows that see at least so many keys take the backward of bfloat16s, others that of floats: two
  /// passes of faster products against one pass of fewer.
  int64_t min_backward_keys;
};

/// The sets that this build has and this machine can run, best first; never empty.
struct InstructionSetList {
  InstructionSet entries[5];
  int count;
};
InstructionSetList usable_instruction_sets();

}  // namespace parallax::cpu
