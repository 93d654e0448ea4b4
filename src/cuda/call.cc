// SPDX-License-Identifier: Apache-2.0
#include "cuda/call.h"

#include <algorithm>
#include <cmath>

namespace parallax::cuda {
namespace {

constexpr int64_t kNoWindow = int64_t{1} << 40;

const int32_t* index_data(const ConstTensorView& view) {
  return view.defined() ? static_cast<const int32_t*>(view.data) : nullptr;
}

/// The fields that depend on q and k alone. `k` may be a cache.
AttentionCall attention_of(const ConstTensorView& q, const ConstTensorView& k,
                           const AttentionOptions& options) {
  AttentionCall call{};
  call.q = operand_of(q);
  call.dtype = q.dtype;
  call.head_dim = static_cast<int>(q.size(q.rank - 1));
  call.num_heads_q = static_cast<int>(q.size(q.rank - 2));
  call.num_heads_kv = static_cast<int>(k.size(k.rank - 2));
  call.group = call.num_heads_q / call.num_heads_kv;
  call.softmax_scale = static_cast<float>(
      options.softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(call.head_dim))));
  call.causal = options.mask == Mask::kCausal;
  call.window = std::min(options.window.value_or(kNoWindow), kNoWindow);
  return call;
}

/// Sequences of forward and backward arguments.
template <typename Args>
AttentionCall training_call(const Args& args) {
  AttentionCall call = attention_of(args.q, args.k, args.options);
  call.r = operand_of(args.r);
  call.k = operand_of(args.k);
  call.v = operand_of(args.v);
  const bool packed = args.q.rank == 3;
  call.sequences.num_sequences = packed ? args.cu_seqlens_q.size(0) - 1 : args.q.size(0);
  call.sequences.num_queries = args.q.size(packed ? 0 : 1);
  call.sequences.num_keys = args.k.size(packed ? 0 : 1);
  call.sequences.cu_seqlens_q = index_data(args.cu_seqlens_q);
  call.sequences.cu_seqlens_k = index_data(args.cu_seqlens_k);
  return call;
}

template <typename Args>
void set_outputs(const Args& args, ForwardCall& call) {
  call.out = operand_of(args.out);
  call.out_softmax = operand_of(args.out_softmax);
  call.lse = statistic_of<float>(args.lse);
  call.t_mean = statistic_of<float>(args.t_mean);
}

}  // namespace

ForwardCall make_call(const ForwardArgs& args) {
  ForwardCall call{};
  call.attention = training_call(args);
  set_outputs(args, call);
  return call;
}

ForwardCall make_call(const DecodeArgs& args) {
  ForwardCall call{};
  call.attention = attention_of(args.q, args.k_cache, args.options);
  AttentionCall& attention = call.attention;
  attention.r = operand_of(args.r);
  attention.k = operand_of(args.k_cache);
  attention.v = operand_of(args.v_cache);
  SequenceTable& table = attention.sequences;
  const bool packed = args.q.rank == 3;
  const bool paged = args.page_table.defined();
  table.num_sequences = packed ? args.cu_seqlens_q.size(0) - 1 : args.q.size(0);
  table.num_queries = args.q.size(packed ? 0 : 1);
  table.cu_seqlens_q = index_data(args.cu_seqlens_q);
  table.cache_starts = index_data(args.cache_starts);
  table.cache_seqlens = index_data(args.cache_seqlens);
  table.num_keys = args.k_cache.size(1);
  if (paged) {
    table.page_table = index_data(args.page_table);
    table.page_table_stride = args.page_table.stride(0);
    table.page_size = args.k_cache.size(1);
    table.num_keys = args.page_table.size(1) * table.page_size;
  }
  set_outputs(args, call);
  return call;
}

BackwardCall make_call(const BackwardArgs& args) {
  return {.attention = training_call(args),
          .d_out = operand_of(args.d_out),
          .out = operand_of(args.out),
          .out_softmax = operand_of(args.out_softmax),
          .lse = statistic_of<const float>(args.lse),
          .t_mean = statistic_of<const float>(args.t_mean),
          .dq = operand_of(args.dq),
          .dr = operand_of(args.dr),
          .dk = operand_of(args.dk),
          .dv = operand_of(args.dv)};
}

}  // namespace parallax::cuda
