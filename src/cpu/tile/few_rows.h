// Forward for a tile of at most four rows of one token, as in decoding: the head dimension is in
// the lanes, so that every key and value is loaded and converted once for all rows and no lane
// idles. (The wide tiles keep rows in the lanes: fewer than eight of them would leave most lanes
// empty, 4 to 8 times the instructions, and decoding no longer waits for memory.)
// Blocks of up to kFewKeys keys: scores with a horizontal sum per key and row, the softmax with
// keys in the lanes, then the value sums with their accumulators in registers.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/tile/forward_tile.h"

namespace parallax::cpu {
namespace {

constexpr int kFewRows = 4;
constexpr int kFewKeys = 64;

/// kVectorFloats numbers of a row, as floats.
template <DType kType>
PLX_INLINE Floats<kVectorFloats> load_numbers(const void* row, int64_t idx) {
  constexpr int kWidth = kVectorFloats;
  if constexpr (kType == DType::kFloat32) {
    return load<Floats<kWidth>>(static_cast<const float*>(row) + idx);
  } else {
    const auto* const source = static_cast<const uint16_t*>(row) + idx;
    typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));
    if constexpr (kType == DType::kBFloat16) {
      using U = typename VectorTypes<kWidth>::Unsigned;
      return reinterpret_cast<Floats<kWidth>>(__builtin_convertvector(load<Halves>(source), U)
                                              << 16);
    } else {
#if PLX_VECTOR_BYTES == 64
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
#elif PLX_VECTOR_BYTES == 32
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
#else
      Floats<kWidth> value;
      for (int lane = 0; lane < kWidth; ++lane) value[lane] = from_float16(source[lane]);
      return value;
#endif
    }
  }
}

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

/// Asks for the rows of the next block while this one is computed: with several heads in a cache's
/// row, each head's part is too short for the hardware to see a stream.
PLX_INLINE void prefetch_rows(const void* const* rows, int64_t count, int64_t bytes) {
  for (int64_t idx = 0; idx < count; ++idx)
    for (int64_t byte = 0; byte < bytes; byte += 64)
      __builtin_prefetch(static_cast<const char*>(rows[idx]) + byte, /*rw=*/0, /*locality=*/2);
}

/// One block of keys: where they and their values lie.
struct KeyBlock {
  int64_t count = 0;
  const void *keys[kFewKeys], *values[kFewKeys];

  void find(const TileInputs& inputs, const QueryTile& tile, int64_t first_key) {
    const int64_t left = tile.key_end - first_key;
    count = left < 0 ? 0 : (left < kFewKeys ? left : kFewKeys);
    find_keys(inputs.k, first_key, count, keys);
    find_keys(inputs.v, first_key, count, values);
  }
};

/// The rows of a tile, their scores of one block of keys, and their sums.
template <int kRows>
struct FewRows {
  const float *q, *r;                            // [kRows][D]
  float *o1, *o2;                                // [kRows][D]
  float s[kRows][kFewKeys], t[kRows][kFewKeys];  // then w and w (t - centre)
  float max[kRows], weight[kRows], t_sum[kRows], centre[kRows];
  float rescale[kRows];
};

/// s = q.k and t = r.k of `count` keys.
template <int kRows, DType kType>
PLX_INLINE void few_scores(FewRows<kRows>& rows, const void* const* k, int64_t count,
                           int head_dim) {
  using F = Floats<kVectorFloats>;
  constexpr int kKeys = (PLX_VECTOR_BYTES == 64 ? 8 : 4) / kRows;  // at once: 2 kRows sums each
  for (int64_t first = 0; first < count; first += kKeys) {
    const void* keys[kKeys];
    for (int i = 0; i < kKeys; ++i) keys[i] = k[first + i < count ? first + i : count - 1];
    F s[kKeys][kRows] = {}, t[kKeys][kRows] = {};
    for (int d = 0; d < head_dim; d += kVectorFloats) {
      F key[kKeys];
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; ++i) key[i] = load_numbers<kType>(keys[i], d);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        const F q = load<F>(rows.q + row * head_dim + d), r = load<F>(rows.r + row * head_dim + d);
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) {
          s[i][row] = multiply_add(key[i], q, s[i][row]);
          t[i][row] = multiply_add(key[i], r, t[i][row]);
        }
      }
    }
    for (int i = 0; i < kKeys && first + i < count; ++i)
      for (int row = 0; row < kRows; ++row) {
        rows.s[row][first + i] = sum_of_lanes(s[i][row]);
        rows.t[row][first + i] = sum_of_lanes(t[i][row]);
      }
  }
}

/// The softmax step of one row over `count` keys. As softmax_step, with the keys in the lanes.
template <int kRows>
static void few_softmax(FewRows<kRows>& rows, int row, int64_t count, float softmax_scale) {
  using F = Floats<kVectorFloats>;
  using I = Ints<kVectorFloats>;
  float* const s = rows.s[row];
  float* const t = rows.t[row];
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
  rows.rescale[row] = alpha;
  rows.max[row] = max;
  rows.weight[row] = rows.weight[row] * alpha + block_weight;
  rows.t_sum[row] = rows.t_sum[row] * alpha + block_t;
}

/// O1 <- rescale O1 + sum w v, O2 likewise with w (t - centre). The block is summed from zero.
template <int kRows, DType kType>
PLX_INLINE void few_values(FewRows<kRows>& rows, const void* const* v, int64_t count,
                           int head_dim) {
  using F = Floats<kVectorFloats>;
  constexpr int kVectors = (PLX_VECTOR_BYTES == 64 ? 8 : 4) / kRows;  // of D at once
  const auto add = [&]<int kCount>(int first) __attribute__((always_inline)) {
    F o1[kRows][kCount]{}, o2[kRows][kCount]{};
    for (int64_t key = 0; key < count; ++key) {
      const void* const source = v[key];
      F value[kCount];
#pragma GCC unroll 8
      for (int n = 0; n < kCount; ++n)
        value[n] = load_numbers<kType>(source, first + n * kVectorFloats);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        const F w = splat<kVectorFloats>(rows.s[row][key]);
        const F u = splat<kVectorFloats>(rows.t[row][key]);
#pragma GCC unroll 8
        for (int n = 0; n < kCount; ++n) {
          o1[row][n] = multiply_add(value[n], w, o1[row][n]);
          o2[row][n] = multiply_add(value[n], u, o2[row][n]);
        }
      }
    }
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
      for (int n = 0; n < kCount; ++n) {
        const int at = row * head_dim + first + n * kVectorFloats;
        store(rows.o1 + at, load<F>(rows.o1 + at) * rows.rescale[row] + o1[row][n]);
        store(rows.o2 + at, load<F>(rows.o2 + at) * rows.rescale[row] + o2[row][n]);
      }
  };
  int d = 0;
  for (; d + kVectors * kVectorFloats <= head_dim; d += kVectors * kVectorFloats)
    add.template operator()<kVectors>(d);
  for (; d < head_dim; d += kVectorFloats) add.template operator()<1>(d);
}

/// Loads up to kRows rows of q and r, zeros for the missing.
template <int kRows>
static void start_few_rows(const TileInputs& inputs, const QueryTile& tile, float* memory,
                           FewRows<kRows>& rows) {
  const int head_dim = inputs.head_dim;
  float* const q = memory;
  float* const r = q + kRows * head_dim;
  load_rows(q, inputs.q, tile, inputs.group, head_dim, head_dim, kRows);
  load_rows(r, inputs.r, tile, inputs.group, head_dim, head_dim, kRows);
  rows.q = q;
  rows.r = r;
  rows.o1 = r + kRows * head_dim;
  rows.o2 = rows.o1 + kRows * head_dim;
  for (int idx = 0; idx < 2 * kRows * head_dim; ++idx) rows.o1[idx] = 0.0f;
  for (int row = 0; row < kRows; ++row) {
    rows.max[row] = -kInfinity;
    rows.weight[row] = rows.t_sum[row] = rows.centre[row] = 0.0f;
    for (int key = 0; key < kFewKeys; ++key) rows.s[row][key] = rows.t[row][key] = 0.0f;
  }
}

template <int kRows, DType kType>
static void few_rows_tile(const TileInputs& inputs, const QueryTile& tile, const TileState& state,
                          float* scratch) {
  const int head_dim = inputs.head_dim;
  FewRows<kRows> rows;
  start_few_rows<kRows>(inputs, tile, scratch, rows);
  const int64_t row_bytes = head_dim * element_bytes(kType);
  KeyBlock blocks[2];
  blocks[0].find(inputs, tile, tile.key_begin);
  int current = 0;
  for (int64_t key = tile.key_begin; key < tile.key_end; key += kFewKeys, current ^= 1) {
    const KeyBlock& block = blocks[current];
    KeyBlock& next = blocks[current ^ 1];
    next.find(inputs, tile, key + kFewKeys);
    const int64_t count = block.count;
    prefetch_rows(next.keys, next.count, row_bytes);
    few_scores<kRows, kType>(rows, block.keys, count, head_dim);
    prefetch_rows(next.values, next.count, row_bytes);
    for (int row = 0; row < kRows; ++row)
      few_softmax<kRows>(rows, row, count, inputs.softmax_scale);
    few_values<kRows, kType>(rows, block.values, count, head_dim);
  }
  start_state(state, kNarrowRows, padded_dim(head_dim));
  for (int row = 0; row < kRows; ++row) {
    state.max[row] = rows.max[row];
    state.weight[row] = rows.weight[row];
    state.t_sum[row] = rows.t_sum[row];
    state.centre[row] = rows.centre[row];
    for (int d = 0; d < head_dim; ++d) {
      state.sums[d * 2 * kNarrowRows + row] = rows.o1[row * head_dim + d];
      state.sums[d * 2 * kNarrowRows + kNarrowRows + row] = rows.o2[row * head_dim + d];
    }
  }
}

template <DType kType>
PLX_INLINE void few_rows_of_type(const TileInputs& inputs, const QueryTile& tile,
                                 const TileState& state, float* scratch) {
  if (tile.num_rows == 1)
    few_rows_tile<1, kType>(inputs, tile, state, scratch);
  else if (tile.num_rows == 2)
    few_rows_tile<2, kType>(inputs, tile, state, scratch);
  else
    few_rows_tile<4, kType>(inputs, tile, state, scratch);
}

/// A narrow tile by whichever kernel suits its rows: few ones of a single token see the same keys.
static void narrow_forward_tile(const TileInputs& inputs, const QueryTile& tile,
                                const TileState& state, float* scratch) {
  const int64_t last_row = tile.first_row + tile.num_rows - 1;
  const bool same_token = tile.first_row / inputs.group == last_row / inputs.group;
  if (tile.num_rows > kFewRows || !same_token || inputs.head_dim % kVectorFloats != 0)
    forward_tile<kNarrowRows>(inputs, tile, state, scratch);
  else if (inputs.k.dtype == DType::kFloat32)
    few_rows_of_type<DType::kFloat32>(inputs, tile, state, scratch);
  else if (inputs.k.dtype == DType::kBFloat16)
    few_rows_of_type<DType::kBFloat16>(inputs, tile, state, scratch);
  else
    few_rows_of_type<DType::kFloat16>(inputs, tile, state, scratch);
}

}  // namespace
}  // namespace parallax::cpu
