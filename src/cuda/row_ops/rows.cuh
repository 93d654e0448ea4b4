// Rows of strided tensors as the row kernels read and write them: eight neighbours at a time, 16
// bytes of 16-bit numbers, as one or two 16-byte accesses where address and strides allow it and
// one by one elsewhere and at a row's end. A read keeps the bits and a second step widens them, so
// that a thread has all of its reads under way before it waits for the first: dtypes are known
// when the kernel runs, and a choice of three conversions in between would be a wait.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <limits>

#include "core/row_grid.h"
#include "cuda/check.h"

namespace parallax::cuda::row_ops {

constexpr int kThreads = 256;
constexpr int kChunk = 8;

/// The rows of a tensor [B, N, H, D], or what stands for one: a dimension along which nothing
/// changes has stride 0.
template <typename Pointee>
struct Rows {
  Pointee* data;  // null: absent
  DType dtype;
  bool aligned;  // each row begins, and each half of a rotated one, at a multiple of 16 bytes
  int64_t strides[3];
};

/// N, H and the number of all rows.
struct RowGrid {
  uint32_t tokens, heads, num_rows;
};

struct RowPlace {
  uint32_t b, n, h;

  /// Of the row's first element, in elements.
  template <typename Pointee>
  __device__ __forceinline__ int64_t in(const Rows<Pointee>& rows) const {
    return b * rows.strides[0] + n * rows.strides[1] + h * rows.strides[2];
  }
};

/// Divisions are slow, and most tensors have been made one list of rows.
__device__ __forceinline__ RowPlace place_of(const RowGrid& grid, uint32_t row) {
  if (row < grid.heads) return {0, 0, row};
  const uint32_t token = grid.heads == 1 ? row : row / grid.heads;
  const uint32_t h = row - token * grid.heads;
  if (token < grid.tokens) return {0, token, h};
  const uint32_t b = token / grid.tokens;
  return {b, token - b * grid.tokens, h};
}

struct alignas(16) RawChunk {
  uint32_t words[kChunk];  // 16-bit numbers fill the first four, the first number in the low half
};

struct Chunk {
  float values[kChunk];
};

/// Elements offset .. offset + count - 1 and zeros after them; more than kChunk count as kChunk.
__device__ __forceinline__ RawChunk load_chunk(const Rows<const void>& from, int64_t offset,
                                               int count) {
  RawChunk raw{};
  const bool wide = from.dtype == DType::kFloat32;
  if (from.aligned && count >= kChunk) {
    const auto* const source = reinterpret_cast<const uint4*>(static_cast<const char*>(from.data) +
                                                              offset * (wide ? 4 : 2));
    auto* const target = reinterpret_cast<uint4*>(raw.words);
    target[0] = source[0];
    if (wide) target[1] = source[1];
  } else if (wide) {
    const uint32_t* const source = static_cast<const uint32_t*>(from.data) + offset;
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      if (i < count) raw.words[i] = source[i];
  } else {
    const uint16_t* const source = static_cast<const uint16_t*>(from.data) + offset;
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      if (i < count) raw.words[i / 2] |= static_cast<uint32_t>(source[i]) << i % 2 * 16;
  }
  return raw;
}

template <typename To, typename From>
__device__ __forceinline__ To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

__device__ __forceinline__ Chunk widened(const RawChunk& raw, DType dtype) {
  Chunk chunk;
  if (dtype == DType::kFloat32) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) chunk.values[i] = bits_as<float>(raw.words[i]);
    return chunk;
  }
#pragma unroll
  for (int i = 0; i < kChunk / 2; ++i) {
    const float2 pair = dtype == DType::kBFloat16
                            ? __bfloat1622float2(bits_as<__nv_bfloat162>(raw.words[i]))
                            : __half22float2(bits_as<__half2>(raw.words[i]));
    chunk.values[2 * i] = pair.x;
    chunk.values[2 * i + 1] = pair.y;
  }
  return chunk;
}

__device__ __forceinline__ RawChunk narrowed(const Chunk& chunk, DType dtype) {
  RawChunk raw{};
  if (dtype == DType::kFloat32) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) raw.words[i] = bits_as<uint32_t>(chunk.values[i]);
    return raw;
  }
#pragma unroll
  for (int i = 0; i < kChunk / 2; ++i) {
    const float low = chunk.values[2 * i], high = chunk.values[2 * i + 1];
    raw.words[i] = dtype == DType::kBFloat16 ? bits_as<uint32_t>(__floats2bfloat162_rn(low, high))
                                             : bits_as<uint32_t>(__floats2half2_rn(low, high));
  }
  return raw;
}

/// The counterpart of load_chunk.
__device__ __forceinline__ void store_chunk(const Rows<void>& to, int64_t offset, int count,
                                            const Chunk& chunk) {
  const RawChunk raw = narrowed(chunk, to.dtype);
  const bool wide = to.dtype == DType::kFloat32;
  if (to.aligned && count >= kChunk) {
    auto* const target =
        reinterpret_cast<uint4*>(static_cast<char*>(to.data) + offset * (wide ? 4 : 2));
    const auto* const source = reinterpret_cast<const uint4*>(raw.words);
    target[0] = source[0];
    if (wide) target[1] = source[1];
  } else if (wide) {
    uint32_t* const target = static_cast<uint32_t*>(to.data) + offset;
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      if (i < count) target[i] = raw.words[i];
  } else {
    uint16_t* const target = static_cast<uint16_t*>(to.data) + offset;
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      if (i < count) target[i] = static_cast<uint16_t>(raw.words[i / 2] >> i % 2 * 16);
  }
}

// The host's side.

constexpr int64_t divide_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

/// Makes two dimensions of rows one, `inner`, in all tensors, if each of them lies so.
template <typename... Tensors>
bool merge_dims(core::Grid& grid, int outer, int inner, Tensors&... tensors) {
  auto& sizes = grid.sizes;
  const auto fits = [&](const auto& tensor) {
    return sizes[outer] == 1 || sizes[inner] == 1 ||
           tensor.strides[outer] == tensor.strides[inner] * sizes[inner];
  };
  if (!(fits(tensors) && ...)) return false;
  if (sizes[inner] == 1) ((tensors.strides[inner] = tensors.strides[outer]), ...);
  sizes[inner] *= sizes[outer];
  sizes[outer] = 1;
  return true;
}

/// As many dimensions as possible into the last.
template <typename... Tensors>
void merge_rows(core::Grid& grid, Tensors&... tensors) {
  if (merge_dims(grid, 1, 2, tensors...)) merge_dims(grid, 0, 2, tensors...);
}

/// `half`: 0, or the distance of a row's halves, whose chunks are apart.
template <typename Pointee>
Rows<Pointee> kernel_rows(const core::GridTensor<Pointee>& tensor, const core::Grid& grid,
                          int half = 0) {
  Rows<Pointee> rows{.data = tensor.data, .dtype = tensor.dtype, .aligned = false, .strides = {}};
  const auto element = static_cast<int64_t>(size_of(tensor.dtype));
  bool aligned = reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 && half * element % 16 == 0;
  for (int dim = 0; dim < 3; ++dim) {
    rows.strides[dim] = tensor.strides[dim];
    aligned = aligned && (grid.sizes[dim] <= 1 || tensor.strides[dim] * element % 16 == 0);
  }
  rows.aligned = aligned;
  return rows;
}

/// Throws Error if the rows cannot be numbered in 31 bits.
inline RowGrid row_grid(const core::Grid& grid, const char* function) {
  const int64_t num_rows = grid.sizes[0] * grid.sizes[1] * grid.sizes[2];
  PLX_CHECK(num_rows <= std::numeric_limits<int32_t>::max(), function, ": the tensors have ",
            num_rows, " rows; on CUDA devices there may be at most ",
            std::numeric_limits<int32_t>::max(), " in one call");
  return {.tokens = static_cast<uint32_t>(grid.sizes[1]),
          .heads = static_cast<uint32_t>(grid.sizes[2]),
          .num_rows = static_cast<uint32_t>(num_rows)};
}

}  // namespace parallax::cuda::row_ops
