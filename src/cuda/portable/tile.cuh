// The tiles of all portable attention kernels. A block of 4 kRows threads keeps kRows rows of one
// side in shared memory ("resident"), whole rows, widened to float32. The other side passes by in
// steps of kItems items (a key, or a query and head), kColumns of their columns at a time. Two
// products serve every pass:
//   add_products: sums[row][item] += resident[row] . item
//   add_weighted: part[row][column] += sum_item weight[item][row] item[column]
// Both run over their inner index in ascending order with one fmaf per term, so that equal factors
// give equal bits wherever they are multiplied.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/elements.cuh"
#include "cuda/device/rows.cuh"

namespace parallax::cuda::portable {

constexpr int kItems = 32;
constexpr int kColumns = 64;
// Floats after each row in shared memory: rows then start 4 banks apart, so that eight threads that
// read 16 bytes of eight rows meet no conflict.
constexpr int kPadding = 4;
constexpr int kThreadsPerRow = 4;

template <int kRowsValue, int kHeadDimValue>
struct TileShape {
  static constexpr int kRows = kRowsValue;
  static constexpr int kHeadDim = kHeadDimValue;  // of the resident rows, a multiple of kColumns
  static constexpr int kThreads = kThreadsPerRow * kRows;
  static constexpr int kChunks = kHeadDim / kColumns;

  struct alignas(16) Resident {
    float rows[kRows][kHeadDim + kPadding];
  };
  struct alignas(16) Stream {
    float items[kItems][kColumns + kPadding];
  };
  struct alignas(16) Weights {
    float of[kItems][kRows + kPadding];
  };
};

/// Items begin <= i < end; empty if end <= begin.
struct ItemRange {
  int begin, end;
};

/// Bit x: whether `range` has the item first + x, of kItems.
__device__ __forceinline__ uint32_t visible_bits(const ItemRange& range, int first) {
  const int begin = min(max(range.begin - first, 0), kItems);
  const int end = min(max(range.end - first, begin), kItems);
  return static_cast<uint32_t>((uint64_t{1} << end) - (uint64_t{1} << begin));
}

__device__ __forceinline__ bool has_bit(uint32_t bits, int idx) { return (bits >> idx & 1) != 0; }

/// kRows items from `first` on, of which `range` exist: the others become zeros, unread. Columns
/// column .. column + kColumns - 1 of them go to `to`, kStride floats from row to row.
template <int kThreads, int kRows, int kStride, typename T, bool kAligned, typename Rows>
__device__ __forceinline__ void load_rows_as(float* to, const Elements<const void>& from,
                                             const Rows& rows, int first, const ItemRange& range,
                                             int column) {
  constexpr int kFoursPerRow = kColumns / 4;
  constexpr int kCount = kRows * kFoursPerRow / kThreads;
  static_assert(kCount * kThreads == kRows * kFoursPerRow);
  // All reads are under way before the first is widened and written.
  FourElements<T> fours[kCount] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int four = threadIdx.x + i * kThreads;
    const int item = first + four / kFoursPerRow;
    if (item >= range.begin && item < range.end)
      fours[i] = load_four<T, kAligned>(static_cast<const T*>(from.data) + rows.at(item),
                                        column + four % kFoursPerRow * 4, from.head_dim);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int four = threadIdx.x + i * kThreads;
    const T(&bits)[4] = fours[i].values;
    *reinterpret_cast<float4*>(to + four / kFoursPerRow * kStride + four % kFoursPerRow * 4) =
        make_float4(widened(bits[0], from.dtype), widened(bits[1], from.dtype),
                    widened(bits[2], from.dtype), widened(bits[3], from.dtype));
  }
}

/// A side of a product in memory: a tensor, and where the rows of one head are.
template <typename Rows>
struct Source {
  Elements<const void> elements;
  Rows rows;
};

template <int kThreads, int kRows, int kStride, typename Rows>
__device__ __forceinline__ void load_rows(float* to, const Source<Rows>& from, int first,
                                          const ItemRange& range, int column) {
  const auto load = [&](auto zero, auto is_aligned) {
    load_rows_as<kThreads, kRows, kStride, decltype(zero), decltype(is_aligned)::value>(
        to, from.elements, from.rows, first, range, column);
  };
  const bool wide = from.elements.dtype == DType::kFloat32, aligned = from.elements.aligned;
  if (wide && aligned)
    load(float{}, std::true_type{});
  else if (wide)
    load(float{}, std::false_type{});
  else if (aligned)
    load(uint16_t{}, std::true_type{});
  else
    load(uint16_t{}, std::false_type{});
}

/// Whole rows; the columns beyond the head's last become zeros.
template <typename Shape, typename Rows>
__device__ __forceinline__ void load_resident(typename Shape::Resident& to,
                                              const Source<Rows>& from, int first,
                                              const ItemRange& range) {
#pragma unroll 1
  for (int chunk = 0; chunk < Shape::kChunks; ++chunk)
    load_rows<Shape::kThreads, Shape::kRows, Shape::kHeadDim + kPadding>(
        &to.rows[0][chunk * kColumns], from, first, range, chunk * kColumns);
}

/// The next chunk of the stream, between two barriers: no thread still reads the last one, and all
/// see this one.
template <typename Shape, typename Rows>
__device__ __forceinline__ void load_stream(typename Shape::Stream& to, const Source<Rows>& from,
                                            int first, const ItemRange& range, int chunk) {
  __syncthreads();
  load_rows<Shape::kThreads, kItems, kColumns + kPadding>(&to.items[0][0], from, first, range,
                                                          chunk * kColumns);
  __syncthreads();
}

/// The pairs of a thread in add_products: rows pair_row(i), items pair_item(j). The eight threads
/// of a row group read eight neighbouring items.
constexpr int kPairRows = 2;
constexpr int kPairItems = 4;
using PairSums = float[kPairRows][kPairItems];

template <typename Shape>
__device__ __forceinline__ int pair_row(int i) {
  return threadIdx.x / 8 + i * (Shape::kRows / kPairRows);
}
__device__ __forceinline__ int pair_item(int j) { return threadIdx.x % 8 + j * 8; }

__device__ __forceinline__ float add_dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/// sums[n][i][j] += resident[n] . stream over the columns of a chunk. Several residents share the
/// reads of the stream.
template <typename Shape, int kCount>
__device__ __forceinline__ void add_products(
    PairSums (&sums)[kCount], const typename Shape::Resident* const (&resident)[kCount],
    const typename Shape::Stream& stream, int chunk) {
#pragma unroll 2
  for (int column = 0; column < kColumns; column += 4) {
    float4 items[kPairItems];
#pragma unroll
    for (int j = 0; j < kPairItems; ++j)
      items[j] = *reinterpret_cast<const float4*>(&stream.items[pair_item(j)][column]);
#pragma unroll
    for (int n = 0; n < kCount; ++n)
#pragma unroll
      for (int i = 0; i < kPairRows; ++i) {
        const float4 row = *reinterpret_cast<const float4*>(
            &resident[n]->rows[pair_row<Shape>(i)][chunk * kColumns + column]);
#pragma unroll
        for (int j = 0; j < kPairItems; ++j) sums[n][i][j] = add_dot(row, items[j], sums[n][i][j]);
      }
  }
}

/// The sums of a thread in add_weighted: four neighbouring rows by four neighbouring columns.
using PartSums = float[4][4];

__device__ __forceinline__ int part_row() { return threadIdx.x / 16 * 4; }
__device__ __forceinline__ int part_column() { return threadIdx.x % 16 * 4; }

/// part[n] += weights[n] of the rows times the items of the chunk. kGuarded: only the pairs whose
/// bit is set in `visible`, since the weight of a hidden pair is 0, but 0 times a NaN or an
/// infinity is not.
template <typename Shape, int kCount, bool kGuarded>
__device__ __forceinline__ void add_weighted_if(PartSums (&part)[kCount],
                                                const typename Shape::Weights* weights,
                                                const typename Shape::Stream& stream,
                                                const uint32_t (&visible)[4]) {
#pragma unroll 2
  for (int item = 0; item < kItems; ++item) {
    const float4 four = *reinterpret_cast<const float4*>(&stream.items[item][part_column()]);
    const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const float4 rows = *reinterpret_cast<const float4*>(&weights[n].of[item][part_row()]);
      const float factors[4] = {rows.x, rows.y, rows.z, rows.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (!kGuarded || has_bit(visible[i], item))
            part[n][i][j] = fmaf(factors[i], values[j], part[n][i][j]);
    }
  }
}

/// Whether some of kItems items from `first` on are not in `common`, which all rows see.
__device__ __forceinline__ bool is_cut(const ItemRange& common, int first) {
  return first < common.begin || first > common.end - kItems;
}

/// What the block's rows see of a stream.
template <int kRows>
struct Visibility {
  const ItemRange (&of_row)[kRows];
  ItemRange common;  // what all rows see, those that exist
};

template <typename Shape, int kCount>
__device__ __forceinline__ void add_weighted(PartSums (&part)[kCount],
                                             const typename Shape::Weights* weights,
                                             const typename Shape::Stream& stream,
                                             const Visibility<Shape::kRows>& visible, int first) {
  uint32_t bits[4] = {};
  if (!is_cut(visible.common, first)) {
    add_weighted_if<Shape, kCount, false>(part, weights, stream, bits);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) bits[i] = visible_bits(visible.of_row[part_row() + i], first);
  add_weighted_if<Shape, kCount, true>(part, weights, stream, bits);
}

/// sums[chunk][n] = sums[chunk][n] * factor of the row + part[n]. Registers have no index: the
/// chunk is looked for, so that the code before this exists once and not for every chunk.
template <int kChunks, int kCount>
__device__ __forceinline__ void add_parts(PartSums (&sums)[kChunks][kCount], int chunk,
                                          const PartSums (&part)[kCount],
                                          const float (&factors)[4]) {
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (c != chunk) continue;
#pragma unroll
    for (int n = 0; n < kCount; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          sums[c][n][i][j] = fmaf(sums[c][n][i][j], factors[i], part[n][i][j]);
  }
}

/// Calls launch(std::integral_constant) with the smallest of 64, 128 and 256 that holds a head.
template <typename Launch>
void with_padded_head_dim(int head_dim, const Launch& launch) {
  if (head_dim <= 64)
    launch(std::integral_constant<int, 64>{});
  else if (head_dim <= 128)
    launch(std::integral_constant<int, 128>{});
  else
    launch(std::integral_constant<int, 256>{});
}

}  // namespace parallax::cuda::portable
