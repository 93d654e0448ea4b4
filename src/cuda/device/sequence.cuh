// One sequence of a call, the keys that its queries see, and the queries that see a key.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/call.h"

namespace parallax::cuda {

/// Rows of q from query_row on; keys key_begin .. key_end, counted from key_row in k.
struct DeviceSequence {
  int64_t batch;      // index for batch strides and page tables
  int64_t query_row;  // of a packed q, else 0
  int64_t key_row;    // of a packed k, else 0
  int num_queries;
  int key_begin, key_end;
};

__host__ __device__ inline DeviceSequence device_sequence(const SequenceTable& table, int idx) {
  DeviceSequence sequence{.batch = idx,
                          .query_row = 0,
                          .key_row = 0,
                          .num_queries = static_cast<int>(table.num_queries),
                          .key_begin = 0,
                          .key_end = static_cast<int>(table.num_keys)};
  if (table.cu_seqlens_q != nullptr) {
    sequence.query_row = table.cu_seqlens_q[idx];
    sequence.num_queries = table.cu_seqlens_q[idx + 1] - table.cu_seqlens_q[idx];
  }
  if (table.cu_seqlens_k != nullptr) {
    sequence.key_row = table.cu_seqlens_k[idx];
    sequence.key_end = table.cu_seqlens_k[idx + 1] - table.cu_seqlens_k[idx];
  }
  if (table.cache_seqlens != nullptr) sequence.key_end = table.cache_seqlens[idx];
  if (table.cache_starts != nullptr) sequence.key_begin = table.cache_starts[idx];
  return sequence;
}

struct KeySpan {
  int begin, end;  // begin <= end
};

/// The keys that a query sees. Both ends grow with `query`.
__host__ __device__ inline KeySpan visible_keys(const AttentionCall& call,
                                                const DeviceSequence& sequence, int query) {
  const int diagonal = sequence.key_end - sequence.num_queries + query + 1;
  const int64_t oldest = diagonal - call.window;
  const int end = call.causal ? diagonal : sequence.key_end;
  const int begin =
      call.causal && oldest > sequence.key_begin ? static_cast<int>(oldest) : sequence.key_begin;
  return {begin, max(begin, end)};
}

struct QuerySpan {
  int begin, end;  // begin <= end
};

/// The queries that see a key of key_begin .. key_end: visible_keys the other way round. Both ends
/// grow with `key`.
__device__ __forceinline__ QuerySpan visible_queries(const AttentionCall& call,
                                                     const DeviceSequence& sequence, int key) {
  const int64_t num_queries = sequence.num_queries;
  if (!call.causal) return {0, sequence.num_queries};
  const int64_t newest = num_queries - sequence.key_end + key;  // the query whose last key it is
  const int64_t begin = min(max(newest, int64_t{0}), num_queries);
  const int64_t end = min(max(newest + call.window, begin), num_queries);
  return {static_cast<int>(begin), static_cast<int>(end)};
}

}  // namespace parallax::cuda
