// SPDX-License-Identifier: Apache-2.0
#include "core/problem.h"

#include <cmath>

namespace parallax::core {
namespace {

/// Entry `idx` of an int32 vector, or `otherwise` if the vector is absent.
int64_t entry_or(const ConstTensorView& view, int64_t idx, int64_t otherwise) {
  if (!view.defined()) return otherwise;
  return static_cast<const int32_t*>(view.data)[idx];
}

/// What all calls share: heads, sizes and options.
Problem common_problem(const ConstTensorView& q, const ConstTensorView& k,
                       const AttentionOptions& options) {
  Problem problem;
  problem.q = q;
  problem.k = k;
  problem.num_heads_q = q.size(q.rank - 2);
  problem.num_heads_kv = k.size(k.rank - 2);
  problem.group_size = problem.num_heads_q / problem.num_heads_kv;
  problem.head_dim = q.size(q.rank - 1);
  problem.softmax_scale =
      options.softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(problem.head_dim)));
  problem.mask = options.mask;
  problem.window = std::min(options.window.value_or(Problem::kNoWindow), Problem::kNoWindow);
  return problem;
}

/// ForwardArgs and BackwardArgs describe their inputs alike.
template <typename Args>
Problem training_problem(const Args& args) {
  Problem problem = common_problem(args.q, args.k, args.options);
  problem.r = args.r;
  problem.v = args.v;
  const bool packed = args.cu_seqlens_q.defined();
  const int64_t batch = packed ? args.cu_seqlens_q.size(0) - 1 : args.q.size(0);
  for (int64_t idx = 0; idx < batch; ++idx) {
    const int64_t query_begin = entry_or(args.cu_seqlens_q, idx, 0);
    const int64_t query_end = entry_or(args.cu_seqlens_q, idx + 1, args.q.size(1));
    const int64_t key_begin = entry_or(args.cu_seqlens_k, idx, 0);
    const int64_t key_end = entry_or(args.cu_seqlens_k, idx + 1, args.k.size(1));
    problem.sequences.push_back({.idx = idx,
                                 .query_offset = query_begin,
                                 .key_offset = key_begin,
                                 .num_queries = query_end - query_begin,
                                 .keys = {0, key_end - key_begin}});
  }
  return problem;
}

}  // namespace

Problem make_problem(const ForwardArgs& args) { return training_problem(args); }

Problem make_problem(const BackwardArgs& args) { return training_problem(args); }

Problem make_problem(const DecodeArgs& args) {
  Problem problem = common_problem(args.q, args.k_cache, args.options);
  problem.r = args.r;
  problem.v = args.v_cache;
  problem.page_table = args.page_table;
  const bool packed = args.cu_seqlens_q.defined();
  const int64_t batch = packed ? args.cu_seqlens_q.size(0) - 1 : args.q.size(0);
  const int64_t page_size = args.k_cache.size(1);
  const int64_t capacity =
      args.page_table.defined() ? args.page_table.size(1) * page_size : page_size;
  for (int64_t idx = 0; idx < batch; ++idx) {
    const int64_t query_begin = entry_or(args.cu_seqlens_q, idx, 0);
    const int64_t query_end = entry_or(args.cu_seqlens_q, idx + 1, args.q.size(1));
    problem.sequences.push_back({.idx = idx,
                                 .query_offset = query_begin,
                                 .num_queries = query_end - query_begin,
                                 .keys = {entry_or(args.cache_starts, idx, 0),
                                          entry_or(args.cache_seqlens, idx, capacity)}});
  }
  return problem;
}

}  // namespace parallax::core
