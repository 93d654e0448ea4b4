// The softmax step of a group of 16 rows on the matrix unit: two passes over the scores, and the
// weights leave rounded and in the order of the next product.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/forward_tile.h"
#include "cpu/tile/matrix_unit.h"

namespace parallax::cpu {
namespace {

constexpr int kGroupRows = 16;
constexpr int kMatrixGroups = 4;
constexpr int kMatrixRows = kMatrixGroups * kGroupRows;
/// Keys per step: the operands of a group's products then fit the second-level cache.
constexpr int kMatrixKeys = 128;

/// Work space of a step of one group.
struct MatrixScratch {
  float* scores;           // [kMatrixKeys][32]
  uint16_t *left, *right;  // [kMatrixKeys / 32] tiles
  uint16_t* spare;         // one packed block
};

PLX_INLINE MatrixScratch take_matrix_scratch(ScratchCursor& cursor, int padded) {
  MatrixScratch scratch;
  scratch.scores = cursor.take(kMatrixKeys * 2 * kGroupRows);
  scratch.left = cursor.take_halves(kMatrixKeys * kGroupRows);
  scratch.right = cursor.take_halves(kMatrixKeys * kGroupRows);
  scratch.spare = cursor.take_halves(kPackedRows * padded);
  return scratch;
}

/// The largest s of each lane over a step and before, with the scores of hidden keys set to -inf
/// and their t to 0.
template <int kWidth>
PLX_INLINE Floats<kWidth> mask_and_max(const ScoreTile<kGroupRows>& tile, int lane,
                                       Floats<kWidth> max) {
  using F = Floats<kWidth>;
  if (tile.masked) return scale_and_mask<kGroupRows, kWidth>(tile, lane, max);
  const float* row = tile.scores + lane;
  F largest = splat<kWidth>(-kInfinity), second = largest;
  int64_t key = 0;
  for (; key + 1 < tile.num_keys; key += 2, row += 4 * kGroupRows) {
    const F s = load<F>(row) * tile.softmax_scale;
    const F next = load<F>(row + 2 * kGroupRows) * tile.softmax_scale;
    largest = s > largest ? s : largest;
    second = next > second ? next : second;
  }
  if (key < tile.num_keys) {
    const F s = load<F>(row) * tile.softmax_scale;
    largest = s > largest ? s : largest;
  }
  largest = second > largest ? second : largest;
  return largest > max ? largest : max;
}

/// Running sums of one vector of lanes within a step.
template <int kWidth>
struct StepSums {
  Floats<kWidth> weight, t_sum, rounded_weight, rounded_t_sum;
};

/// softmax_step for a group: scores -> tiles of P and of P (t - centre), rounded. Returns whether
/// the old sums must be multiplied by `rescale`.
static bool matrix_softmax_step(const ScoreTile<kGroupRows>& tile, const TileState& state,
                                const MatrixScratch& scratch, float* rescale) {
  constexpr int kWidth = kVectorFloats;
  using F = Floats<kWidth>;
  bool any_change = false;
  for (int lane = 0; lane < kGroupRows; lane += kWidth) {
    const F old_max = load<F>(state.max + lane);
    const F max = mask_and_max<kWidth>(tile, lane, old_max);
    const F safe_max = max == -kInfinity ? F{} : max;
    // Scores of a masked step are scaled already.
    const float scale = tile.masked ? 1.0f : tile.softmax_scale;
    F centre = load<F>(state.centre + lane);
    const Ints<kWidth> fresh = (old_max == -kInfinity) & (max > -kInfinity);
    if (any<kWidth>(fresh)) {
      centre = fresh ? tile_t_mean<kGroupRows, kWidth>(tile, lane, safe_max, scale) : centre;
      store(state.centre + lane, centre);
    }
    StepSums<kWidth> sums{};
    const float* row = tile.scores + lane;
    const int64_t end = (tile.num_keys + kPackedRows - 1) / kPackedRows * kPackedRows;
    for (int64_t key = 0; key < end; key += 2, row += 4 * kGroupRows) {
      F p[2], u[2];
      for (int one = 0; one < 2; ++one) {
        const float* const score = row + one * 2 * kGroupRows;
        const bool exists = key + one < tile.num_keys;
        p[one] = exists ? exponential<kWidth>(load<F>(score) * scale - safe_max) : F{};
        u[one] = exists ? p[one] * (load<F>(score + kGroupRows) - centre) : F{};
        sums.weight += p[one];
        sums.t_sum += u[one];
      }
      const int64_t at = key * kGroupRows + 2 * lane;
      store_pair<kWidth>(scratch.left + at, p[0], p[1], sums.rounded_weight);
      store_pair<kWidth>(scratch.right + at, u[0], u[1], sums.rounded_t_sum);
    }
    const F alpha = exponential<kWidth>(old_max - safe_max);
    any_change |= any<kWidth>(alpha != 1.0f);
    store(rescale + lane, alpha);
    store(state.max + lane, max);
    const auto add = [&](float* sum, F more) {
      store(sum + lane, load<F>(sum + lane) * alpha + more);
    };
    add(state.weight, sums.weight);
    add(state.t_sum, sums.t_sum);
    add(state.rounded_weight, sums.rounded_weight);
    add(state.rounded_t_sum, sums.rounded_t_sum);
  }
  return any_change;
}

}  // namespace
}  // namespace parallax::cpu
