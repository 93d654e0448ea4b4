// Blocks of keys where they lie in a cache, contiguous or paged, for several heads at once.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/rows.h"

namespace parallax::cpu {
namespace {

/// Keys of a block. Those of all heads of this block and the next stay in the second-level cache.
constexpr int kFewKeys = 16;

/// Where the keys first_key .. first_key + count lie.
static void find_keys(const KeyTensor& tensor, int64_t first_key, int64_t count,
                      const void** addresses) {
  int64_t idx = 0;
  while (idx < count) {
    const void* address = key_address(tensor, first_key + idx);
    int64_t run = count - idx;
    if (tensor.pages != nullptr) {
      const int64_t left = tensor.page_size - (first_key + idx) % tensor.page_size;
      run = left < run ? left : run;
    }
    for (; run > 0; --run, ++idx) {
      addresses[idx] = address;
      address = advance(address, tensor.dtype, tensor.token_stride);
    }
  }
}

/// One block of keys: where the first head's keys and values lie. The other heads' lie as many
/// bytes further for every key. The last key is repeated up to a multiple of eight.
struct KeyBlock {
  int64_t count = 0;
  const void *keys[kFewKeys], *values[kFewKeys];

  void find(const TileInputs& inputs, const QueryTile& tile, int64_t first_key) {
    const int64_t left = tile.key_end - first_key;
    count = left < 0 ? 0 : (left < kFewKeys ? left : kFewKeys);
    find_keys(inputs.k, first_key, count, keys);
    find_keys(inputs.v, first_key, count, values);
    for (int64_t idx = count; idx > 0 && idx % 8 != 0; ++idx) keys[idx] = keys[count - 1];
  }
};

/// The same numbers of one head.
struct HeadRows {
  const void* const* rows;
  int64_t offset;  // bytes
  const void* operator[](int64_t idx) const { return static_cast<const char*>(rows[idx]) + offset; }
};

/// Where the rows of all heads lie relative to the first's: `count` runs of `bytes`.
struct RowRuns {
  const int64_t* offsets;
  int count;
  int64_t bytes;
};

/// The rows of heads side by side are one run.
PLX_INLINE RowRuns row_runs(const int64_t* offsets, int num_heads, int64_t row_bytes) {
  bool touch = true;
  for (int head = 0; head < num_heads; ++head) touch &= offsets[head] == head * row_bytes;
  if (touch) return {offsets, 1, num_heads * row_bytes};
  return {offsets, num_heads, row_bytes};
}

/// Asks for rows of the next block while this one is computed, in the order of memory.
PLX_INLINE void prefetch_rows(const void* const* rows, const void* const* end,
                              const RowRuns& runs) {
  for (; rows < end; ++rows)
    for (int run = 0; run < runs.count; ++run) {
      const char* const begin = static_cast<const char*>(*rows) + runs.offsets[run];
      for (int64_t byte = 0; byte < runs.bytes; byte += 64)
        __builtin_prefetch(begin + byte, /*rw=*/0, /*locality=*/2);
    }
}

}  // namespace
}  // namespace parallax::cpu
