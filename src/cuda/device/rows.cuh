// Where the rows of one key head lie in a tensor, as offsets in elements from its data.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/device/sequence.cuh"

namespace parallax::cuda {

/// Rows of a tensor shaped like q, or of a statistic. The query heads of a key head follow each
/// other: row = token * group + head of the group.
struct QueryRows {
  int64_t first;
  int64_t token_stride, head_stride;
  int group;

  __device__ __forceinline__ int64_t at(int row) const {
    const int token = row / group;
    return first + token * token_stride + (row - token * group) * head_stride;
  }
};

/// `tensor`: an Operand or a Statistic.
template <typename Tensor>
__device__ __forceinline__ QueryRows query_rows(const Tensor& tensor,
                                                const DeviceSequence& sequence, int head_kv,
                                                int group) {
  return {.first = sequence.batch * tensor.batch_stride + sequence.query_row * tensor.token_stride +
                   static_cast<int64_t>(head_kv) * group * tensor.head_stride,
          .token_stride = tensor.token_stride,
          .head_stride = tensor.head_stride,
          .group = group};
}

/// Rows of a tensor shaped like k, or of a cache: row = key.
struct KeyRows {
  int64_t first;
  int64_t token_stride;
  const int32_t* pages;  // of the sequence; null: not paged
  int64_t page_stride;
  int page_size;

  __device__ __forceinline__ int64_t at(int key) const {
    if (pages == nullptr) return first + key * token_stride;
    const int page = key / page_size;
    return first + pages[page] * page_stride + (key - page * page_size) * token_stride;
  }
};

template <typename Pointee>
__device__ __forceinline__ KeyRows key_rows(const Operand<Pointee>& tensor,
                                            const SequenceTable& table,
                                            const DeviceSequence& sequence, int head_kv) {
  const int64_t head_offset = head_kv * tensor.head_stride;
  if (table.page_table != nullptr)
    return {.first = head_offset,
            .token_stride = tensor.token_stride,
            .pages = table.page_table + sequence.batch * table.page_table_stride,
            .page_stride = tensor.batch_stride,
            .page_size = static_cast<int>(table.page_size)};
  return {.first = head_offset + sequence.batch * tensor.batch_stride +
                   sequence.key_row * tensor.token_stride,
          .token_stride = tensor.token_stride,
          .pages = nullptr,
          .page_stride = 0,
          .page_size = 1};
}

}  // namespace parallax::cuda
