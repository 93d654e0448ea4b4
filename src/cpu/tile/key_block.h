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

/// Lines of memory that so many numbers take, at least one.
template <DType kType, int kNumbers>
constexpr int kLines = [] {
  const int lines = kNumbers * (kType == DType::kFloat32 ? 4 : 2) / kLineBytes;
  return lines > 0 ? lines : 1;
}();

/// Asks for rows of the next block line by line, in the order of memory and in between the
/// arithmetic on this block, which a burst of requests would stall: it fills the queue of misses.
class RowPrefetch {
 public:
  RowPrefetch(const void* const* rows, const void* const* end, const RowRuns& runs)
      : row_(rows), end_(end), runs_(runs) {
    if (row_ < end_) start_run();
  }

  /// The next `lines` lines, as far as there are any.
  __attribute__((always_inline)) void ask(int lines) {
    for (; lines > 0 && row_ < end_; --lines) {
      __builtin_prefetch(at_, /*rw=*/0, /*locality=*/2);
      at_ += kLineBytes;
      if (at_ >= run_end_) next_run();
    }
  }

 private:
  void start_run() {
    at_ = static_cast<const char*>(*row_) + runs_.offsets[run_];
    run_end_ = at_ + runs_.bytes;
  }
  void next_run() {
    if (++run_ == runs_.count) run_ = 0, ++row_;
    if (row_ < end_) start_run();
  }

  const void* const* row_;
  const void* const* end_;
  const RowRuns& runs_;
  int run_ = 0;
  const char *at_ = nullptr, *run_end_ = nullptr;
};

/// The rows of one head in a block, and the rows of the next that are asked for meanwhile.
struct HeadRows {
  const void* const* rows;  // the first head's
  int64_t offset;           // bytes
  int64_t count;
  RowPrefetch& next;
  const void* operator[](int64_t idx) const { return static_cast<const char*>(rows[idx]) + offset; }
};

}  // namespace
}  // namespace parallax::cpu
