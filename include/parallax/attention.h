// The public functions: Parallax attention forward, backward, decode, and the merge of partial
// results.
//
// For query i, with the sums over the keys j visible to it:
//   s_ij = softmax_scale * q_i.k_j     p_ij = softmax_j(s_ij)
//   t_ij = r_i.k_j                     (the covariance score; it has no scale)
//   out_i         = sum_j p_ij (1 + t_mean_i - t_ij) v_j = E_p[v] - Cov_p(v, k) r_i
//   out_softmax_i = sum_j p_ij v_j     t_mean_i = sum_j p_ij t_ij     lse_i = log sum_j exp(s_ij)
// Equation 8 of arXiv 2605.29157; docs/math.md derives all of it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "parallax/tensor.h"

namespace parallax {

/// kCausal is end-aligned: query i of Tq sees the keys j <= i + Tk - Tq. kFull sees all keys.
enum class Mask : uint8_t { kFull, kCausal };

struct AttentionOptions {
  /// Multiplies q.k only; D^-1/2 when absent.
  std::optional<double> softmax_scale{};
  Mask mask = Mask::kCausal;
  /// Keeps exactly the `window` newest visible keys, i + Tk - Tq - window + 1 .. i + Tk - Tq.
  /// Needs kCausal; at least 1; all visible keys when absent.
  std::optional<int64_t> window{};
};

/// Where a call on CUDA tensors runs, and with which memory. A call on CPU tensors ignores it.
struct Execution {
  /// The cudaStream_t on which the work is enqueued; null is the default stream.
  void* stream = nullptr;
  /// At least workspace_bytes() bytes of the tensors' device, 256-byte aligned; null if that is 0.
  /// It belongs to the call until the stream has passed it, and holds nothing from one call to the
  /// next.
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

/// Arguments of attention_forward().
///   q, r  [B, Tq, Hq, D]     float32 | bfloat16 | float16 | float64, innermost stride 1
///   k, v  [B, Tk, Hkv, D]    same dtype; Hq % Hkv == 0; query head h reads key head h / (Hq / Hkv)
///   out, out_softmax         shape and dtype of q, innermost stride 1
///   lse, t_mean              [B, Hq, Tq] float32 (float64 for float64 inputs), natural log
/// Packed variable length: q, r [total_q, Hq, D], k, v [total_k, Hkv, D], lse, t_mean
/// [Hq, total_q], and cu_seqlens_q, cu_seqlens_k int32 [N + 1], contiguous, non-decreasing from 0
/// to the total; a zero-length sequence is allowed. 1 <= D <= 256.
/// A query without visible keys gives out = out_softmax = 0, lse = -inf, t_mean = 0. Keys that a
/// query does not see change not a bit of its results, whatever they hold, NaN included.
/// out_softmax, lse and t_mean may be left undefined (inference); out is required.
///
/// Memory, here and below. Strides count elements. An input's batch, token and head strides may be
/// anything, 0 and negative included; its innermost one is 1 unless that dimension has one element
/// or the tensor none. lse and t_mean may have any strides as inputs. The strides of an output are
/// positive and nest, as in dense memory that was sliced or permuted: no element lies at two
/// indices. Data pointers are aligned to their element. Inputs may share memory with each other. An
/// output must not overlap an input or another output: what starts at the same address or overlaps
/// with both ranges gapless is refused; other overlaps (of interleaved strided views), which only
/// a search could tell, are not found and give undefined results.
struct ForwardArgs {
  ConstTensorView q{}, r{}, k{}, v{};
  ConstTensorView cu_seqlens_q{}, cu_seqlens_k{};
  AttentionOptions options{};
  TensorView out{}, out_softmax{}, lse{}, t_mean{};
  Execution execution{};
};

/// Arguments of attention_backward(): the inputs of the forward call, what it returned, the
/// gradient of `out`, and where the gradients go. All are required; only cu_seqlens_q and
/// cu_seqlens_k belong to packed tensors alone, whose shapes, like the rules for strides and
/// overlap, are those of ForwardArgs.
///   d_out, out, out_softmax  shape and dtype of q        dq, dr  shape and dtype of q
///   lse, t_mean              as in ForwardArgs           dk, dv  shape and dtype of k
/// With g_ij = d_out_i.v_j, gbar_i = d_out_i.out_softmax_i, tau_i = d_out_i.out_i:
///   ds_ij = p (1 + t_mean - t)(g - gbar) + p (gbar - tau)     dt_ij = -p (g - gbar)
///   dq_i = scale sum_j ds k_j     dk_j = sum_h sum_i (scale ds q_i + dt r_i)
///   dr_i = sum_j dt k_j           dv_j = sum_h sum_i p (1 + t_mean - t) d_out_i
/// where h runs over the Hq / Hkv query heads that read the key head, and i over the queries that
/// see key j. A key that no query sees has dk = dv = 0, a query without visible keys dq = dr = 0.
/// `deterministic` asks for a bitwise repeatable result; the CPU backends always give one.
struct BackwardArgs {
  ConstTensorView d_out{};
  ConstTensorView q{}, r{}, k{}, v{};
  ConstTensorView out{}, out_softmax{}, lse{}, t_mean{};
  ConstTensorView cu_seqlens_q{}, cu_seqlens_k{};
  AttentionOptions options{};
  bool deterministic = true;
  TensorView dq{}, dr{}, dk{}, dv{};
  Execution execution{};
};

/// Arguments of decode(): new query tokens against a key-value cache that already holds their keys.
///   q, r              [B, Tq, Hq, D], or packed [total_q, Hq, D] with cu_seqlens_q int32 [B + 1]
///   k_cache, v_cache  [B, capacity, Hkv, D], or with page_table [num_pages, page_size, Hkv, D];
///                     dtype of q, innermost stride 1, any other stride
///   page_table        int32 [B, max_pages], rows contiguous: the pages of each sequence in order;
///                     entries past its last page are never read
///   cache_seqlens     int32 [B], contiguous: valid keys end here (default: the capacity)
///   cache_starts      int32 [B], contiguous: valid keys begin here (default: 0), for left padding
///   k_scale, v_scale  for quantised caches: not built yet, must be undefined
///   out, out_softmax, lse, t_mean  as in ForwardArgs, the last three optional
/// The query tokens of a sequence are its newest: the last one sits at key cache_seqlens - 1, and
/// they are causal among themselves. Any number of query tokens is allowed, so chunked prefill is
/// this call with cu_seqlens_q. Cache memory outside [cache_starts, cache_seqlens) is not read into
/// the result and may hold NaN. options.mask must be kCausal.
/// `batch_invariant` asks that a sequence's result have the same bits whatever else is in the
/// batch; the CPU backends always give that.
struct DecodeArgs {
  ConstTensorView q{}, r{};
  ConstTensorView k_cache{}, v_cache{};
  ConstTensorView cache_starts{}, cache_seqlens{}, cu_seqlens_q{}, page_table{};
  ConstTensorView k_scale{}, v_scale{};
  AttentionOptions options{};
  bool batch_invariant = false;
  TensorView out{}, out_softmax{}, lse{}, t_mean{};
  Execution execution{};
};

/// One partial result over a subset of the keys, as attention_forward() and decode() return it.
struct PartialState {
  ConstTensorView out{}, out_softmax{}, lse{}, t_mean{};
};

/// Arguments of merge_states(): partial results of the same queries over disjoint sets of keys give
/// the result over their union. There must be at least one partial, with all four tensors; of the
/// outputs, out is required. All have the shapes and dtypes of ForwardArgs' outputs, dense or
/// packed; the stride rules are those of inputs and outputs there, and no output may be a partial.
///   lse = log sum_s exp(lse_s)     w_s = exp(lse_s - lse)     t_mean = sum_s w_s t_mean_s
///   out_softmax = sum_s w_s out_softmax_s
///   out = sum_s w_s (out_s + (t_mean - t_mean_s) out_softmax_s)
/// The last line is (1 + t_mean) out_softmax - E[t v] with E_s[t v] = (1 + t_mean_s) out_softmax_s
/// - out_s. A partial whose lse is -inf has no weight, whatever its other tensors hold; if all are,
/// the row is that of a query without visible keys.
struct MergeArgs {
  std::span<const PartialState> partials{};
  TensorView out{}, out_softmax{}, lse{}, t_mean{};
  Execution execution{};
};

/// Each function checks its arguments, picks the first backend that supports them (backend.h;
/// PLX_BACKEND forces one), and computes. Writes the output views and nothing else. Synchronous on
/// the CPU; on CUDA tensors enqueued on execution.stream, without allocating, waiting for the
/// device or reading its memory, so that a graph can capture it. Bitwise repeatable, and the same
/// for any number of threads. Throws parallax::Error if an argument is not allowed or no backend
/// supports the case; then no output has been touched. Lengths and page numbers in CUDA memory are
/// not checked: wrong ones give undefined results. May be called from several threads at once, if
/// no call writes what another reads or writes: a call that finds the library's threads busy runs
/// on its own.
void attention_forward(const ForwardArgs& args);
void attention_backward(const BackwardArgs& args);
void decode(const DecodeArgs& args);
void merge_states(const MergeArgs& args);

/// Bytes that `execution.workspace` of this call must have; 0 on the CPU. Depends on shapes, dtype
/// and options, not on what tensors hold. Throws as the call itself would.
int64_t workspace_bytes(const ForwardArgs& args);
int64_t workspace_bytes(const BackwardArgs& args);
int64_t workspace_bytes(const DecodeArgs& args);

}  // namespace parallax
