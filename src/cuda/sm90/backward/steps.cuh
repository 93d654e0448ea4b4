// Which steps a tile takes: 64 rows of the other kind each, at multiples of 64 of the sequence.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/sm90/backward/config.h"
#include "cuda/sm90/tile.cuh"

namespace parallax::cuda::sm90 {

struct RowSpan {
  int begin, end;
};

/// Rows of the other kind that a row of a tile meets: the queries that see a key, or the keys that
/// a query sees. Both ends grow with `row`.
template <TileRows kRows>
__device__ __forceinline__ RowSpan visible_rows(const AttentionCall& call, const Tile& tile,
                                                int row) {
  if constexpr (kRows == TileRows::kKeys) {
    const QuerySpan span = visible_queries(call, sequence_of(tile), row);
    return {span.begin, span.end};
  } else {
    const KeySpan span = visible_keys(call, sequence_of(tile), row);
    return {span.begin, span.end};
  }
}

/// Steps `begin` to `end`; those from whole_begin to whole_end meet every row whole.
struct Steps {
  int begin, end;
  int whole_begin, whole_end;
};

/// Of the rows first .. first + count, as far as they exist.
template <TileRows kRows>
__device__ __forceinline__ Steps steps_of(const AttentionCall& call, const Tile& tile, int first,
                                          int count) {
  const int num_rows = kRows == TileRows::kKeys ? tile.num_keys : tile.num_queries;
  const int last = min(first + count, num_rows) - 1;
  if (last < first) return {0, 0, 0, 0};
  const RowSpan oldest = visible_rows<kRows>(call, tile, first);
  const RowSpan newest = visible_rows<kRows>(call, tile, last);
  if (oldest.begin >= newest.end) return {0, 0, 0, 0};
  return {.begin = oldest.begin / kBackwardRows,
          .end = (newest.end + kBackwardRows - 1) / kBackwardRows,
          .whole_begin = (newest.begin + kBackwardRows - 1) / kBackwardRows,
          .whole_end = oldest.end / kBackwardRows};
}

/// A tile of keys meets its queries from the first on, a tile of queries its keys from the newest
/// on: the masked steps of a causal mask come first.
template <TileRows kRows>
__device__ __forceinline__ int step_at(const Steps& steps, int idx) {
  return kRows == TileRows::kKeys ? steps.begin + idx : steps.end - 1 - idx;
}

/// Of a consumer, counted by step_at()'s idx over the steps of the whole tile.
struct StepRange {
  int begin, end;
  int whole_begin, whole_end;  // begin < whole_begin <= whole_end <= end, if there are steps
};

template <TileRows kRows>
__device__ __forceinline__ StepRange range_of(const Steps& all, const Steps& own) {
  if (own.begin >= own.end) return {0, 0, 0, 0};
  StepRange range;
  if constexpr (kRows == TileRows::kKeys)
    range = {own.begin - all.begin, own.end - all.begin, own.whole_begin - all.begin,
             own.whole_end - all.begin};
  else
    range = {all.end - own.end, all.end - own.begin, all.end - own.whole_end,
             all.end - own.whole_begin};
  range.whole_begin = min(max(range.whole_begin, range.begin + 1), range.end);
  range.whole_end = min(max(range.whole_end, range.whole_begin), range.end);
  return range;
}

}  // namespace parallax::cuda::sm90
