// Forward for tiles of at most four rows of one token, as in decoding: the head dimension is in
// the lanes, so that every key and value is loaded and converted once for all rows and no lane
// idles. (With rows in the lanes, fewer than eight would leave most lanes empty.)
// Several key heads go through the keys together, block by block: in a cache [B, T, H, D] they lie
// side by side, and a thread that takes them all reads its memory from end to end.
// A block: scores, the softmax with keys in the lanes, then the value sums in registers.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/forward_tile.h"
#include "cpu/tile/key_block.h"
#include "cpu/tile/row_loads.h"

namespace parallax::cpu {
namespace {

constexpr int kFewRows = 4;

/// The numbers first .. end of rows that lie row_stride apart.
struct DepthSpan {
  int first, end, row_stride;
};

/// The rows of one key head and their sums.
template <int kRows>
struct FewRows {
  const float *q, *r;  // [kRows][D]
  float *o1, *o2;      // [kRows][D]
  float max[kRows]{}, weight[kRows]{}, t_sum[kRows]{}, centre[kRows]{};
};

/// Scores of one head and block, then w and w (t - centre); what the old sums are multiplied by.
template <int kRows>
struct FewScores {
  float s[kRows][kFewKeys], t[kRows][kFewKeys];
  float rescale[kRows];
};

/// Keys whose scores are computed at once: 2 kRows sums each.
template <int kRows>
constexpr int kScoreKeys = (PLX_VECTOR_BYTES == 64 ? 8 : 4) / kRows;

/// The part of the scores of kScoreKeys keys from depth.first on, kVectors vectors at a time.
/// totals: q.k as [kRows][kScoreKeys], then r.k.
template <int kRows, DType kType, int kVectors>
PLX_INLINE void score_keys(const FewRows<kRows>& rows, HeadRows k, DepthSpan depth, float* totals) {
  using F = Floats<kVectorFloats>;
  constexpr int kKeys = kScoreKeys<kRows>, kSums = 2 * kRows * kKeys;
  const void* keys[kKeys];
#pragma GCC unroll 8
  for (int i = 0; i < kKeys; ++i) keys[i] = k[i];
  F sums[kSums];  // in the order of totals
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sums[i] = F{};
  for (int d = depth.first; d < depth.end; d += kVectors * kVectorFloats) {
    k.next.ask(kLines<kType, kKeys * kVectors * kVectorFloats>);
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
      F key[kVectors];
      if constexpr (kVectors == 2)
        load_pair<kType>(keys[i], d, key[0], key[1]);
      else
        key[0] = load_numbers<kType>(keys[i], d);
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n)
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) {
          const int64_t at = row * depth.row_stride + d + n * kVectorFloats;
          F& s = sums[row * kKeys + i];
          F& t = sums[(kRows + row) * kKeys + i];
          s = multiply_add(key[n], load<F>(rows.q + at), s);
          t = multiply_add(key[n], load<F>(rows.r + at), t);
        }
    }
  }
  F addends[kSums];  // with its address taken, sums itself would be stored at every step
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) addends[i] = sums[i];
#pragma GCC unroll 4
  for (int part = 0; part < kSums; part += kVectorFloats)
    store(totals + part, sums_of_lanes(addends + part));
}

/// s = q.k and t = r.k of all keys, rounded up to whole kScoreKeys.
template <int kRows, DType kType>
PLX_INLINE void few_scores(const FewRows<kRows>& rows, HeadRows k, int head_dim,
                           FewScores<kRows>& scores) {
  constexpr int kKeys = kScoreKeys<kRows>;
  const int paired = head_dim / kPairFloats * kPairFloats;
  for (int64_t first = 0; first < k.count; first += kKeys, k.rows += kKeys) {
    float totals[2 * kRows * kKeys];
    score_keys<kRows, kType, 2>(rows, k, {0, paired, head_dim}, totals);
    if (paired < head_dim) {
      float more[2 * kRows * kKeys];
      score_keys<kRows, kType, 1>(rows, k, {paired, head_dim, head_dim}, more);
      for (int idx = 0; idx < 2 * kRows * kKeys; ++idx) totals[idx] += more[idx];
    }
    for (int row = 0; row < kRows; ++row) {
      std::memcpy(scores.s[row] + first, totals + row * kKeys, kKeys * sizeof(float));
      std::memcpy(scores.t[row] + first, totals + (kRows + row) * kKeys, kKeys * sizeof(float));
    }
  }
}

/// The softmax step of one row over `count` keys. As softmax_step, with the keys in the lanes.
template <int kRows>
static void few_softmax(FewRows<kRows>& rows, FewScores<kRows>& scores, int row, int64_t count,
                        float softmax_scale) {
  using F = Floats<kVectorFloats>;
  using I = Ints<kVectorFloats>;
  float* const s = scores.s[row];
  float* const t = scores.t[row];
  F block_max = splat<kVectorFloats>(-kInfinity);
  for (int lane = 0; lane < count; lane += kVectorFloats) {
    const I key = iota<kVectorFloats>() + lane;
    const I exists = key < static_cast<int32_t>(count);
    const F score = exists ? load<F>(s + lane) * softmax_scale : splat<kVectorFloats>(-kInfinity);
    store(s + lane, score);
    store(t + lane, exists ? load<F>(t + lane) : F{});
    block_max = score > block_max ? score : block_max;
  }
  const float old_max = rows.max[row];
  const float lanes_max = max_of_lanes(block_max);
  const float max = lanes_max > old_max ? lanes_max : old_max;
  const float safe_max = max == -kInfinity ? 0.0f : max;
  F weight{}, t_sum{};
  for (int lane = 0; lane < count; lane += kVectorFloats) {
    const F p = exponential<kVectorFloats>(load<F>(s + lane) - safe_max);
    store(s + lane, p);
    weight += p;
    t_sum += p * load<F>(t + lane);
  }
  const float block_weight = sum_of_lanes(weight);
  float block_t = sum_of_lanes(t_sum);
  if (old_max == -kInfinity) rows.centre[row] = block_weight > 0 ? block_t / block_weight : 0.0f;
  t_sum = F{};
  for (int lane = 0; lane < count; lane += kVectorFloats) {
    const F u = load<F>(s + lane) * (load<F>(t + lane) - rows.centre[row]);
    store(t + lane, u);
    t_sum += u;
  }
  block_t = sum_of_lanes(t_sum);
  const float alpha = exponential<4>(splat<4>(old_max - safe_max))[0];
  scores.rescale[row] = alpha;
  rows.max[row] = max;
  rows.weight[row] = rows.weight[row] * alpha + block_weight;
  rows.t_sum[row] = rows.t_sum[row] * alpha + block_t;
}

/// Vectors of each value sum that fit the registers, and rows that they serve at once.
constexpr int kValueVectors = PLX_VECTOR_BYTES == 64 ? 8 : 4;
template <int kRows>
constexpr int kValueRows = kRows < kValueVectors / 2 ? kRows : kValueVectors / 2;

/// kCount vectors of the value sums of the rows row .. row + kValueRows, from depth.first on: an
/// even number of them, or the last one.
template <int kRows, DType kType, int kCount>
PLX_INLINE void add_few_values(FewRows<kRows>& rows, int first_row, const FewScores<kRows>& scores,
                               HeadRows v, DepthSpan depth) {
  using F = Floats<kVectorFloats>;
  F o1[kValueRows<kRows>][kCount]{}, o2[kValueRows<kRows>][kCount]{};
  for (int64_t key = 0; key < v.count; ++key) {
    const void* const source = v[key];
    v.next.ask(kLines<kType, kCount * kVectorFloats>);
    F value[kCount];
    if constexpr (kCount == 1) value[0] = load_numbers<kType>(source, depth.first);
#pragma GCC unroll 4
    for (int n = 0; n + 1 < kCount; n += 2)
      load_pair<kType>(source, depth.first + n * kVectorFloats, value[n], value[n + 1]);
#pragma GCC unroll 4
    for (int row = 0; row < kValueRows<kRows>; ++row) {
      const F w = splat<kVectorFloats>(scores.s[first_row + row][key]);
      const F u = splat<kVectorFloats>(scores.t[first_row + row][key]);
#pragma GCC unroll 8
      for (int n = 0; n < kCount; ++n) {
        o1[row][n] = multiply_add(value[n], w, o1[row][n]);
        o2[row][n] = multiply_add(value[n], u, o2[row][n]);
      }
    }
  }
  for (int row = 0; row < kValueRows<kRows>; ++row)
#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n) {
      const int64_t at = (first_row + row) * depth.row_stride + depth.first + n * kVectorFloats;
      const float rescale = scores.rescale[first_row + row];
      store(rows.o1 + at, load<F>(rows.o1 + at) * rescale + o1[row][n]);
      store(rows.o2 + at, load<F>(rows.o2 + at) * rescale + o2[row][n]);
    }
}

/// O1 <- rescale O1 + sum w v, O2 likewise with w (t - centre). The block is summed from zero.
template <int kRows, DType kType, int kCount = kValueVectors / kValueRows<kRows>>
PLX_INLINE void few_values(FewRows<kRows>& rows, const FewScores<kRows>& scores, HeadRows v,
                           DepthSpan depth) {
  for (; depth.first + kCount * kVectorFloats <= depth.end; depth.first += kCount * kVectorFloats)
    for (int row = 0; row < kRows; row += kValueRows<kRows>)
      add_few_values<kRows, kType, kCount>(rows, row, scores, v, depth);
  if constexpr (kCount > 1) few_values<kRows, kType, kCount / 2>(rows, scores, v, depth);
}

/// Loads up to kRows rows of q and r, zeros for the missing.
template <int kRows, DType kType>
static void start_few_rows(const TileInputs& inputs, const QueryTile& tile, float* memory,
                           FewRows<kRows>& rows) {
  const int head_dim = inputs.head_dim;
  const int size = kRows * head_dim;
  load_rows(memory, inputs.q, tile, inputs.group, head_dim, head_dim, kRows);
  load_rows(memory + size, inputs.r, tile, inputs.group, head_dim, head_dim, kRows);
  arrange_rows<kType>(memory, 2 * kRows, head_dim);
  rows = {.q = memory, .r = memory + size, .o1 = memory + 2 * size, .o2 = memory + 3 * size};
  for (int idx = 0; idx < 2 * size; ++idx) rows.o1[idx] = 0.0f;
  for (int row = 0; row < kRows; ++row) rows.max[row] = -kInfinity;
}

template <int kRows, DType kType>
static void store_few_rows(const FewRows<kRows>& rows, int head_dim, const TileState& state) {
  start_state(state, kNarrowRows, padded_dim(head_dim));
  for (int row = 0; row < kRows; ++row) {
    state.max[row] = rows.max[row];
    state.weight[row] = rows.weight[row];
    state.t_sum[row] = rows.t_sum[row];
    state.centre[row] = rows.centre[row];
    for (int d = 0; d < head_dim; ++d) {
      const int place = row * head_dim + loaded_place<kType>(d, head_dim);
      state.sums[d * 2 * kNarrowRows + row] = rows.o1[place];
      state.sums[d * 2 * kNarrowRows + kNarrowRows + row] = rows.o2[place];
    }
  }
}

template <int kRows, DType kType>
static void few_rows_tiles(const HeadTiles& heads, const QueryTile& tile, float* scratch) {
  const TileInputs& first = heads.inputs[0];
  const int head_dim = first.head_dim;
  FewRows<kRows> rows[kMaxTileHeads];
  FewScores<kRows> scores{};
  int64_t k_offsets[kMaxTileHeads], v_offsets[kMaxTileHeads];
  for (int head = 0; head < heads.count; ++head) {
    const TileInputs& in = heads.inputs[head];
    start_few_rows<kRows, kType>(in, tile, scratch + head * 4 * kRows * head_dim, rows[head]);
    k_offsets[head] = static_cast<const char*>(in.k.data) - static_cast<const char*>(first.k.data);
    v_offsets[head] = static_cast<const char*>(in.v.data) - static_cast<const char*>(first.v.data);
  }
  const int64_t row_bytes = head_dim * element_bytes(kType);
  const RowRuns k_runs = row_runs(k_offsets, heads.count, row_bytes);
  const RowRuns v_runs = row_runs(v_offsets, heads.count, row_bytes);
  KeyBlock blocks[2];
  blocks[0].find(first, tile, tile.key_begin);
  int current = 0;
  for (int64_t key = tile.key_begin; key < tile.key_end; key += kFewKeys, current ^= 1) {
    const KeyBlock& block = blocks[current];
    KeyBlock& next = blocks[current ^ 1];
    next.find(first, tile, key + kFewKeys);
    for (int head = 0; head < heads.count; ++head) {
      const int64_t begin = head * next.count / heads.count;
      const int64_t end = (head + 1) * next.count / heads.count;
      RowPrefetch next_keys(next.keys + begin, next.keys + end, k_runs);
      few_scores<kRows, kType>(rows[head], {block.keys, k_offsets[head], block.count, next_keys},
                               head_dim, scores);
      RowPrefetch next_values(next.values + begin, next.values + end, v_runs);
      for (int row = 0; row < kRows; ++row)
        few_softmax<kRows>(rows[head], scores, row, block.count, first.softmax_scale);
      few_values<kRows, kType>(rows[head], scores,
                               {block.values, v_offsets[head], block.count, next_values},
                               {0, head_dim, head_dim});
    }
  }
  for (int head = 0; head < heads.count; ++head)
    store_few_rows<kRows, kType>(rows[head], head_dim, heads.states[head]);
}

template <DType kType>
PLX_INLINE void few_rows_of_type(const HeadTiles& heads, const QueryTile& tile, float* scratch) {
  if (tile.num_rows == 1)
    few_rows_tiles<1, kType>(heads, tile, scratch);
  else if (tile.num_rows == 2)
    few_rows_tiles<2, kType>(heads, tile, scratch);
  else
    few_rows_tiles<4, kType>(heads, tile, scratch);
}

/// Narrow tiles by whichever kernel suits their rows: few ones of a single token see the same keys.
static void narrow_forward_tiles(const HeadTiles& heads, const QueryTile& tile, float* scratch) {
  const TileInputs& first = heads.inputs[0];
  const int64_t last_row = tile.first_row + tile.num_rows - 1;
  const bool same_token = tile.first_row / first.group == last_row / first.group;
  if (tile.num_rows > kFewRows || !same_token || first.head_dim % kVectorFloats != 0)
    for (int head = 0; head < heads.count; ++head)
      forward_tile<kNarrowRows, 1>(heads.inputs[head], tile, heads.states[head], scratch);
  else if (first.k.dtype == DType::kFloat32)
    few_rows_of_type<DType::kFloat32>(heads, tile, scratch);
  else if (first.k.dtype == DType::kBFloat16)
    few_rows_of_type<DType::kBFloat16>(heads, tile, scratch);
  else
    few_rows_of_type<DType::kFloat16>(heads, tile, scratch);
}

}  // namespace
}  // namespace parallax::cpu
