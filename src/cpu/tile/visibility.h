// Which keys the rows of a tile see, and products in which a hidden pair adds nothing at all: its
// weight is 0, but 0 times a NaN or an infinity is not.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/kernels.h"
#include "cpu/tile/panel_product.h"
#include "cpu/tile/rows.h"

namespace parallax::cpu {
namespace {

/// Rows that the vector kernels hold in their lanes.
constexpr int kWideRows = 32;
/// Keys per step, and per tile of the key pass.
constexpr int kKeyTile = 64;

PLX_INLINE int64_t band_begin(const Band& band, int64_t token) {
  const int64_t begin = token + band.begin_offset;
  return begin > band.begin ? begin : band.begin;
}

PLX_INLINE int64_t band_end(const Band& band, int64_t token) {
  const int64_t end = token + band.end_offset;
  return end < band.end ? end : band.end;
}

/// A key's place in the tile that starts at first_key, at least 0; no tile has kFar keys.
PLX_INLINE int32_t place_in_tile(int64_t key, int64_t first_key) {
  constexpr int64_t kFar = 1 << 20;
  const int64_t place = key - first_key;
  return static_cast<int32_t>(place < 0 ? 0 : (place > kFar ? kFar : place));
}

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
    for (int row = 0; row < kRows; ++row) {
      relative_begin[row] = place_in_tile(begin[row], first_key);
      relative_end[row] = place_in_tile(end[row], first_key);
    }
  }
};

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

/// Whether x * 0 is 0 for all `count` numbers.
static bool all_finite(const float* row, int64_t count) {
  using F = Floats<kVectorFloats>;
  using I = Ints<kVectorFloats>;
  I bad{};
  int64_t idx = 0;
  for (; idx + kVectorFloats <= count; idx += kVectorFloats) {
    const F x = load<F>(row + idx);
    bad |= x - x != F{};
  }
  bool tail_bad = false;
  for (; idx < count; ++idx) tail_bad |= row[idx] - row[idx] != 0.0f;
  return !tail_bad && !any<kVectorFloats>(bad);
}

/// target[k][0 .. length) = row k, or zeros for a row that is not finite.
static void copy_finite_rows(float* target, const FloatRows& rows, int64_t count, int64_t length) {
  for (int64_t k = 0; k < count; ++k) {
    const float* const row = rows.data + k * rows.stride;
    const bool finite = all_finite(row, length);
    for (int64_t m = 0; m < length; ++m) target[k * length + m] = finite ? row[m] : 0.0f;
  }
}

/// c[m][lane] += sum_k a[k][m] b[k][lane] over the pairs for which visible(k, lane); b is 0 for the
/// others. `spare` holds depth * rows floats. The rows of `a` that are not finite, if any, are left
/// out of the matrix product and added lane by lane, so that nobody else's bits depend on them.
template <int kLanes, typename Visible>
static void add_visible_product(float* c, const FloatRows& a, const float* b, ProductSize size,
                                float* spare, const Visible& visible) {
  const auto [rows, depth] = size;
  int64_t num_finite = 0;
  for (int64_t k = 0; k < depth; ++k) num_finite += all_finite(a.data + k * a.stride, rows);
  if (num_finite == depth) {
    add_transposed_product<kLanes>(c, a, b, size);
    return;
  }
  copy_finite_rows(spare, a, depth, rows);
  add_transposed_product<kLanes>(c, {spare, rows}, b, size);
  for (int64_t k = 0; k < depth; ++k) {
    const float* const row = a.data + k * a.stride;
    if (all_finite(row, rows)) continue;
    for (int lane = 0; lane < kLanes; ++lane)
      if (visible(k, lane))
        for (int m = 0; m < rows; ++m) c[m * kLanes + lane] += row[m] * b[k * kLanes + lane];
  }
}

}  // namespace
}  // namespace parallax::cpu
