// Moves rows between the caller's tensors (any of three dtypes, any strides, paged) and packed fp32
// tiles, and transposes tiles into panels and back.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/kernels.h"
#include "cpu/tile/panel_product.h"

namespace parallax::cpu {
namespace {

// The 16-bit conversions repeat those of parallax/dtype.h without branches, for the vectoriser, and
// with internal linkage; tests compare the two over all bit patterns.

PLX_INLINE float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

PLX_INLINE uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

PLX_INLINE float from_bfloat16(uint16_t bits) {
  return float_of_bits(static_cast<uint32_t>(bits) << 16);
}

PLX_INLINE float from_float16(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  const float finite = float_of_bits(magnitude) * 0x1p112f;  // also right for subnormals
  const uint32_t special = (bits & 0x7fffu) >= 0x7c00u ? 0x7f800000u : 0u;
  return float_of_bits(bits_of_float(finite) | special |
                       (static_cast<uint32_t>(bits & 0x8000u) << 16));
}

PLX_INLINE uint16_t to_bfloat16(float value) {
  const uint32_t u = bits_of_float(value);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t nan = (u >> 16) | 0x40u;
  return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

PLX_INLINE uint16_t to_float16(float value) {
  const uint32_t u = bits_of_float(value);
  const uint32_t magnitude = u & 0x7fffffffu;
  // Adding 1/2 leaves a subnormal's rounded bits, in units of 2^-24, at the bottom.
  const uint32_t subnormal = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return static_cast<uint16_t>(result | ((u >> 16) & 0x8000u));
}

PLX_INLINE int64_t element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

PLX_INLINE const void* advance(const void* data, DType dtype, int64_t elements) {
  return static_cast<const char*>(data) + elements * element_bytes(dtype);
}

PLX_INLINE void* advance(void* data, DType dtype, int64_t elements) {
  return static_cast<char*>(data) + elements * element_bytes(dtype);
}

/// target[0 .. count) = source, target[count .. padded) = 0.
PLX_INLINE void load_row(float* target, const void* source, DType dtype, int count, int padded) {
  const auto* const halves = static_cast<const uint16_t*>(source);
  if (dtype == DType::kFloat32) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (int d = 0; d < count; ++d) target[d] = from_bfloat16(halves[d]);
  } else {
    for (int d = 0; d < count; ++d) target[d] = from_float16(halves[d]);
  }
  for (int d = count; d < padded; ++d) target[d] = 0.0f;
}

PLX_INLINE void store_row(void* target, DType dtype, const float* source, int count) {
  auto* const halves = static_cast<uint16_t*>(target);
  if (dtype == DType::kFloat32) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (int d = 0; d < count; ++d) halves[d] = to_bfloat16(source[d]);
  } else {
    for (int d = 0; d < count; ++d) halves[d] = to_float16(source[d]);
  }
}

/// Where a row of a tensor lies.
template <typename Tensor>
PLX_INLINE auto row_address(const Tensor& tensor, int64_t row, int64_t group) {
  const int64_t token = row / group;
  return advance(tensor.data, tensor.dtype,
                 token * tensor.token_stride + (row - token * group) * tensor.head_stride);
}

template <typename Number>
PLX_INLINE Number* scalar_address(const RowScalars<Number>& scalars, int64_t row, int64_t group) {
  const int64_t token = row / group;
  return scalars.data + token * scalars.token_stride + (row - token * group) * scalars.head_stride;
}

/// tile[0 .. num_rows)[padded] = rows, then zero rows up to `capacity`.
static void load_rows(float* tile, const RowTensor<const void>& tensor, const QueryTile& rows,
                      int64_t group, int head_dim, int padded, int capacity) {
  for (int64_t idx = 0; idx < rows.num_rows; ++idx)
    load_row(tile + idx * padded, row_address(tensor, rows.first_row + idx, group), tensor.dtype,
             head_dim, padded);
  for (int64_t idx = rows.num_rows * padded; idx < static_cast<int64_t>(capacity) * padded; ++idx)
    tile[idx] = 0.0f;
}

static void store_rows(const RowTensor<void>& tensor, const float* tile, const QueryTile& rows,
                       int64_t group, int head_dim, int padded) {
  for (int64_t idx = 0; idx < rows.num_rows; ++idx)
    store_row(row_address(tensor, rows.first_row + idx, group), tensor.dtype, tile + idx * padded,
              head_dim);
}

/// Of the caches.
constexpr int kLineBytes = 64;

PLX_INLINE const void* key_address(const KeyTensor& tensor, int64_t key) {
  int64_t offset = key * tensor.token_stride;
  if (tensor.pages != nullptr) {
    const int64_t page = key / tensor.page_size;
    offset = tensor.pages[page] * tensor.page_stride +
             (key - page * tensor.page_size) * tensor.token_stride;
  }
  return advance(tensor.data, tensor.dtype, offset);
}

/// Rows first_key .. first_key + num_keys. AVX-512 takes fp32 rows where they lie. With narrower
/// vectors the products walk over a tile more often, and rows a page apart, as in [B, T, H, D],
/// fall out of the first-level cache in between: there a copy is 9 to 18 % faster.
static FloatRows load_keys(const KeyTensor& tensor, int64_t first_key, int64_t num_keys,
                           int head_dim, int padded, float* tile) {
  if (PLX_VECTOR_BYTES == 64 && tensor.dtype == DType::kFloat32 && tensor.pages == nullptr)
    return {static_cast<const float*>(key_address(tensor, first_key)), tensor.token_stride};
  for (int64_t idx = 0; idx < num_keys; ++idx)
    load_row(tile + idx * padded, key_address(tensor, first_key + idx), tensor.dtype, head_dim,
             head_dim);
  return {tile, padded};
}

/// One kWidth x kWidth block: log2(kWidth) rounds that interleave row i with row i + kWidth / 2.
template <int kWidth>
PLX_INLINE void transpose_block(float* target, int64_t target_stride, const float* source,
                                int64_t source_stride) {
  using F = Floats<kWidth>;
  using I = Ints<kWidth>;
  I low, high;
  for (int lane = 0; lane < kWidth; ++lane) {
    low[lane] = lane / 2 + lane % 2 * kWidth;
    high[lane] = low[lane] + kWidth / 2;
  }
  F rows[kWidth], mixed[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) rows[i] = load<F>(source + i * source_stride);
#pragma GCC unroll 4
  for (int width = 1; width < kWidth; width *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kWidth / 2; ++i) {
      mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + kWidth / 2], low);
      mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kWidth / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) rows[i] = mixed[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) store(target + i * target_stride, rows[i]);
}

/// target[column][row] = source[row][column]; both counts are multiples of 16 (kPadding).
static void transpose(float* target, int64_t target_stride, const float* source,
                      int64_t source_stride, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; row += kVectorFloats)
    for (int64_t column = 0; column < columns; column += kVectorFloats)
      transpose_block<kVectorFloats>(target + column * target_stride + row, target_stride,
                                     source + row * source_stride + column, source_stride);
}

}  // namespace
}  // namespace parallax::cpu
