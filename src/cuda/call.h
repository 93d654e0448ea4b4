// A call as kernels get it: pointers, strides and lengths in one plain struct, by value. Lengths
// that lie in device memory are read there (device/sequence.cuh), so that a captured graph follows
// them. Legend: B batch, Tq/Tk tokens of a sequence, Hq/Hkv heads, D head size.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "parallax/attention.h"

namespace parallax::cuda {

/// A tensor shaped like q or k, its innermost stride 1. Strides count elements. batch_stride is 0
/// for packed tensors, and that of a page for paged caches.
template <typename Pointee>
struct Operand {
  Pointee* data;  // null for an absent output
  int64_t batch_stride, token_stride, head_stride;
};

inline Operand<const void> as_const(const Operand<void>& operand) {
  return {operand.data, operand.batch_stride, operand.token_stride, operand.head_stride};
}

/// lse or t_mean: one float per query and head. Packed: batch_stride is 0.
template <typename Pointee>
struct Statistic {
  Pointee* data;  // null for an absent output
  int64_t batch_stride, token_stride, head_stride;
};

/// Of a view [B, T, H, D], packed [T, H, D], or a paged cache [pages, page_size, H, D].
template <typename Pointee>
Operand<Pointee> operand_of(const BasicTensorView<Pointee>& view) {
  if (!view.defined()) return {};
  const bool packed = view.rank == 3;
  return {.data = view.data,
          .batch_stride = packed ? 0 : view.stride(0),
          .token_stride = view.stride(packed ? 0 : 1),
          .head_stride = view.stride(packed ? 1 : 2)};
}

/// Of a view [B, H, T] or packed [H, T].
template <typename Number, typename Pointee>
Statistic<Number> statistic_of(const BasicTensorView<Pointee>& view) {
  if (!view.defined()) return {};
  const bool packed = view.rank == 2;
  return {.data = static_cast<Number*>(view.data),
          .batch_stride = packed ? 0 : view.stride(0),
          .token_stride = view.stride(packed ? 1 : 2),
          .head_stride = view.stride(packed ? 0 : 1)};
}

/// How the rows of q and k make sequences.
struct SequenceTable {
  int64_t num_sequences;
  int64_t num_queries;  // of each sequence; packed: of all
  int64_t num_keys;     // of each sequence; packed: of all; caches: the capacity of a sequence
  // Device memory; null: dense.
  const int32_t *cu_seqlens_q, *cu_seqlens_k;
  // Caches only; null: all of the capacity.
  const int32_t *cache_starts, *cache_seqlens;
  const int32_t* page_table;  // null: contiguous
  int64_t page_table_stride;  // entries per sequence
  int64_t page_size;
};

/// What forward, backward and decode share.
struct AttentionCall {
  Operand<const void> q, r, k, v;
  SequenceTable sequences;
  DType dtype;
  int num_heads_q, num_heads_kv, group;  // group: query heads per key head
  int head_dim;
  float softmax_scale;
  bool causal;
  int64_t window;  // keys that a query sees at most; a huge number without a window
};

struct ForwardCall {
  AttentionCall attention;
  Operand<void> out, out_softmax;
  Statistic<float> lse, t_mean;
};

struct BackwardCall {
  AttentionCall attention;
  Operand<const void> d_out, out, out_softmax;
  Statistic<const float> lse, t_mean;
  Operand<void> dq, dr, dk, dv;
};

/// Calls with validated arguments, whose tensors are on one CUDA device. Decode is a forward call
/// whose sequences are caches.
ForwardCall make_call(const ForwardArgs& args);
ForwardCall make_call(const DecodeArgs& args);
BackwardCall make_call(const BackwardArgs& args);

}  // namespace parallax::cuda
