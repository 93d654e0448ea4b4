// Elements in memory: float32, bfloat16 and float16 are widened to float32 exactly when they are
// read, and a result is rounded once, to nearest even, when it is written. Four neighbours at a
// time; as one access where the tensor's address and strides allow it, else one by one.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/call.h"

namespace parallax::cuda {

/// The elements of a tensor whose rows have head_dim of them.
template <typename Pointee>
struct Elements {
  Pointee* data;
  DType dtype;
  int head_dim;
  bool aligned;  // every row starts at a multiple of four elements, and has a multiple of four
};

__device__ __forceinline__ int element_bytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : 2;
}

template <typename Pointee>
__device__ __forceinline__ Elements<Pointee> elements_of(const Operand<Pointee>& tensor,
                                                         const AttentionCall& call) {
  const auto address = reinterpret_cast<uintptr_t>(tensor.data);
  const int64_t strides = tensor.batch_stride | tensor.token_stride | tensor.head_stride;
  return {.data = tensor.data,
          .dtype = call.dtype,
          .head_dim = call.head_dim,
          .aligned = address % (4 * element_bytes(call.dtype)) == 0 && strides % 4 == 0 &&
                     call.head_dim % 4 == 0};
}

/// body(T{}) for the element type T.
template <typename Body>
__device__ __forceinline__ void with_element_type(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32)
    body(float{});
  else if (dtype == DType::kBFloat16)
    body(__nv_bfloat16{});
  else
    body(__half{});
}

/// An element's bits, widened. Readers know its size when they are compiled, and whether 16 bits
/// are bfloat16 or float16 when they run: a choice of two results, against half as much code.
__device__ __forceinline__ float widened(float value, DType /*dtype*/) { return value; }
__device__ __forceinline__ float widened(uint16_t bits, DType dtype) {
  return dtype == DType::kBFloat16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                                   : __half2float(__ushort_as_half(bits));
}

template <typename T>
__device__ __forceinline__ T from_float(float value) {
  if constexpr (sizeof(T) == 4)
    return value;
  else if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(value);
  else
    return __float2bfloat16_rn(value);
}

template <typename T>
struct alignas(4 * sizeof(T)) FourElements {
  T values[4];
};

/// The bits of row[column .. column + 3], zeros beyond the row's end. T: float or uint16_t.
template <typename T, bool kAligned>
__device__ __forceinline__ FourElements<T> load_four(const T* row, int column, int head_dim) {
  FourElements<T> four{};
  if constexpr (kAligned) {
    if (column < head_dim) four = *reinterpret_cast<const FourElements<T>*>(row + column);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (column + i < head_dim) four.values[i] = row[column + i];
  }
  return four;
}

/// Elements offset + column .. + 3 of a row, as far as it has them.
__device__ __forceinline__ void store_four(const Elements<void>& to, int64_t offset, int column,
                                           const float (&from)[4]) {
  with_element_type(to.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* const row = static_cast<T*>(to.data) + offset;
    if (to.aligned) {
      FourElements<T> four;
#pragma unroll
      for (int i = 0; i < 4; ++i) four.values[i] = from_float<T>(from[i]);
      if (column < to.head_dim) *reinterpret_cast<FourElements<T>*>(row + column) = four;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (column + i < to.head_dim) row[column + i] = from_float<T>(from[i]);
    }
  });
}

}  // namespace parallax::cuda
