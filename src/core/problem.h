// One shape for every call: dense, packed and cached arguments become a list of sequences, each
// with its query rows, its key rows and the range of keys that a query sees. The backends loop over
// this and know nothing of the batch layouts. Legend: B batch, Tq/Tk tokens of a sequence, Hq/Hkv
// heads, D head size.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "parallax/attention.h"

namespace parallax::core {

/// Key positions begin <= j < end.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;

  bool empty() const { return begin >= end; }
};

/// One sequence of the batch.
struct Sequence {
  int64_t idx = 0;           // entry of the batch
  int64_t query_offset = 0;  // first row of a packed q
  int64_t key_offset = 0;    // first row of a packed k
  int64_t num_queries = 0;
  KeyRange keys{};  // valid positions in k, or in the sequence's cache
};

/// The rows of one sequence in one tensor.
template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  // Paged caches only: token j lies in page pages[j / page_size].
  const int32_t* pages = nullptr;
  int64_t page_size = 0;
  int64_t page_stride = 0;

  /// False for an absent tensor.
  explicit operator bool() const { return data != nullptr; }

  T* at(int64_t token, int64_t head) const {
    if (pages == nullptr) return data + token * token_stride + head * head_stride;
    return data + pages[token / page_size] * page_stride + (token % page_size) * token_stride +
           head * head_stride;
  }
};

/// A call in normal form. Views into the caller's memory; valid while the arguments are.
struct Problem {
  static constexpr int64_t kNoWindow = std::numeric_limits<int64_t>::max() / 2;

  ConstTensorView q{}, r{}, k{}, v{};
  ConstTensorView page_table{};
  int64_t num_heads_q = 0;
  int64_t num_heads_kv = 0;
  int64_t group_size = 0;  // num_heads_q / num_heads_kv
  int64_t head_dim = 0;
  double softmax_scale = 0.0;
  Mask mask = Mask::kCausal;
  int64_t window = kNoWindow;
  std::vector<Sequence> sequences{};

  int64_t num_sequences() const { return static_cast<int64_t>(sequences.size()); }

  /// The keys that a query of the sequence sees. Both ends grow with `query`, so a tile of queries
  /// needs the keys from its first query's begin to its last query's end.
  KeyRange visible_keys(const Sequence& sequence, int64_t query) const {
    if (mask == Mask::kFull) return sequence.keys;
    const int64_t end = sequence.keys.end - sequence.num_queries + query + 1;
    const int64_t begin = std::max(sequence.keys.begin, end - window);
    return {begin, std::max(begin, end)};
  }
};

/// The arguments must have passed validate(), and lie in CPU memory: lengths are read.
Problem make_problem(const ForwardArgs& args);
Problem make_problem(const BackwardArgs& args);
Problem make_problem(const DecodeArgs& args);

namespace internal {

template <typename T, typename Pointee>
using Element = std::conditional_t<std::is_const_v<Pointee>, const T, T>;

}  // namespace internal

/// Rows of a tensor with q's shape, [B, Tq, Hq, D] or packed [total_q, Hq, D].
template <typename T, typename Pointee>
Rows<internal::Element<T, Pointee>> query_rows(const BasicTensorView<Pointee>& view,
                                               const Sequence& sequence) {
  if (view.data == nullptr) return {};
  const bool packed = view.rank == 3;
  return {.data = static_cast<internal::Element<T, Pointee>*>(view.data) +
                  (packed ? sequence.query_offset : sequence.idx) * view.stride(0),
          .token_stride = view.stride(packed ? 0 : 1),
          .head_stride = view.stride(packed ? 1 : 2)};
}

/// Rows of a tensor with k's shape, [B, Tk, Hkv, D], packed [total_k, Hkv, D] or a paged cache.
template <typename T, typename Pointee>
Rows<internal::Element<T, Pointee>> key_rows(const Problem& problem,
                                             const BasicTensorView<Pointee>& view,
                                             const Sequence& sequence) {
  if (view.data == nullptr) return {};
  auto* const data = static_cast<internal::Element<T, Pointee>*>(view.data);
  if (problem.page_table.defined()) {
    const auto* const table = static_cast<const int32_t*>(problem.page_table.data);
    if (table == nullptr) return {};  // no page at all
    return {.data = data,
            .token_stride = view.stride(1),
            .head_stride = view.stride(2),
            .pages = table + sequence.idx * problem.page_table.stride(0),
            .page_size = view.size(1),
            .page_stride = view.stride(0)};
  }
  const bool packed = view.rank == 3;
  return {.data = data + (packed ? sequence.key_offset : sequence.idx) * view.stride(0),
          .token_stride = view.stride(packed ? 0 : 1),
          .head_stride = view.stride(packed ? 1 : 2)};
}

/// Per-row statistics, [B, Hq, Tq] or packed [Hq, total_q]: at(query, head) is one number.
template <typename T, typename Pointee>
Rows<internal::Element<T, Pointee>> stat_rows(const BasicTensorView<Pointee>& view,
                                              const Sequence& sequence) {
  if (view.data == nullptr) return {};
  const bool packed = view.rank == 2;
  const int64_t offset =
      packed ? sequence.query_offset * view.stride(1) : sequence.idx * view.stride(0);
  return {.data = static_cast<internal::Element<T, Pointee>*>(view.data) + offset,
          .token_stride = view.stride(packed ? 1 : 2),
          .head_stride = view.stride(packed ? 0 : 1)};
}

}  // namespace parallax::core
