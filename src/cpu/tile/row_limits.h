// Which keys the rows of a tile see.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/kernels.h"
#include "cpu/tile/vector.h"

namespace parallax::cpu {
namespace {

/// Visible keys of one row relative to a tile or step.
struct LaneRange {
  int32_t begin, end;
};

/// The keys that each row of a tile sees, none before the tile's first. Rows beyond the tile's last
/// see everything: their q and r are zero, so nothing they produce is infinite, and they never
/// force masking.
template <int kRows>
struct RowLimits {
  int64_t begin[kRows], end[kRows];
  int64_t max_begin, min_end;

  /// Whether some row of the tile does not see all of these keys.
  bool cut(int64_t first_key, int64_t num_keys) const {
    return first_key < max_begin || first_key + num_keys > min_end;
  }

  /// Lane masks relative to first_key, for Ints compares with the key's index in its tile.
  void relative(int64_t first_key, int32_t* relative_begin, int32_t* relative_end) const {
    const auto clamp = [](int64_t x) {
      constexpr int64_t kFar = 1 << 20;  // more than the keys of any tile
      return static_cast<int32_t>(x < 0 ? 0 : (x > kFar ? kFar : x));
    };
    for (int row = 0; row < kRows; ++row) {
      relative_begin[row] = clamp(begin[row] - first_key);
      relative_end[row] = clamp(end[row] - first_key);
    }
  }
};

PLX_INLINE int64_t band_begin(const Band& band, int64_t token) {
  const int64_t begin = token + band.begin_offset;
  return begin > band.begin ? begin : band.begin;
}

PLX_INLINE int64_t band_end(const Band& band, int64_t token) {
  const int64_t end = token + band.end_offset;
  return end < band.end ? end : band.end;
}

template <int kRows>
static RowLimits<kRows> row_limits(const Band& band, const QueryTile& tile, int64_t group) {
  RowLimits<kRows> limits;
  limits.max_begin = band.begin;
  limits.min_end = band.end;
  for (int row = 0; row < kRows; ++row) {
    const bool real = row < tile.num_rows;
    const int64_t token = (tile.first_row + row) / group;
    limits.begin[row] = real ? band_begin(band, token) : band.begin;
    limits.end[row] = real ? band_end(band, token) : band.end;
    if (limits.begin[row] < tile.key_begin) limits.begin[row] = tile.key_begin;
    if (limits.begin[row] > limits.max_begin) limits.max_begin = limits.begin[row];
    if (limits.end[row] < limits.min_end) limits.min_end = limits.end[row];
  }
  return limits;
}

}  // namespace
}  // namespace parallax::cpu
