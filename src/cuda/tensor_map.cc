// SPDX-License-Identifier: Apache-2.0
#include "cuda/tensor_map.h"

#include <cuda_runtime.h>

#include <array>

#include "cuda/check.h"

namespace parallax::cuda {
namespace {

constexpr int64_t kElementBytes = 2;
constexpr int64_t kAlignment = 16;
constexpr int64_t kMaxStrideBytes = int64_t{1} << 40;

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/// From the driver itself, so that nothing needs to link to it.
EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult result{};
    PLX_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000,
                                                    cudaEnableDefault, &result));
    PLX_CHECK(result == cudaDriverEntryPointSuccess && address != nullptr,
              "the CUDA driver has no cuTensorMapEncodeTiled; version 12.0 or later is needed");
    return reinterpret_cast<EncodeTiled>(address);
  }();
  return function;
}

/// The stride of a dimension with one entry is never used, but must be valid.
int64_t stride_bytes(int64_t stride, int64_t size) {
  return size > 1 ? stride * kElementBytes : kAlignment;
}

std::array<int64_t, 3> strides_of(const Operand<const void>& tensor, const MapShape& shape) {
  return {stride_bytes(tensor.token_stride, shape.num_tokens),
          stride_bytes(tensor.head_stride, shape.num_heads),
          stride_bytes(tensor.batch_stride, shape.num_batches)};
}

}  // namespace

const char* map_refusal(const Operand<const void>& tensor, const MapShape& shape) {
  if (reinterpret_cast<uintptr_t>(tensor.data) % kAlignment != 0)
    return "its address is not a multiple of 16 bytes";
  for (const int64_t stride : strides_of(tensor, shape)) {
    if (stride <= 0) return "a stride is 0 or negative";
    if (stride % kAlignment != 0) return "a stride is not a multiple of 16 bytes";
    if (stride >= kMaxStrideBytes) return "a stride is 2^40 bytes or more";
  }
  return nullptr;
}

CUtensorMap make_tensor_map(const Operand<const void>& tensor, const MapShape& shape, DType dtype) {
  const std::array<int64_t, 3> bytes = strides_of(tensor, shape);
  const std::array<cuuint64_t, 4> sizes = {
      static_cast<cuuint64_t>(shape.head_dim), static_cast<cuuint64_t>(shape.num_tokens),
      static_cast<cuuint64_t>(shape.num_heads), static_cast<cuuint64_t>(shape.num_batches)};
  const std::array<cuuint64_t, 3> strides = {static_cast<cuuint64_t>(bytes[0]),
                                             static_cast<cuuint64_t>(bytes[1]),
                                             static_cast<cuuint64_t>(bytes[2])};
  const std::array<cuuint32_t, 4> box = {64, static_cast<cuuint32_t>(shape.box_tokens), 1, 1};
  const std::array<cuuint32_t, 4> every = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode_tiled()(&map,
                     dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                     4, const_cast<void*>(tensor.data), sizes.data(), strides.data(), box.data(),
                     every.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  PLX_CHECK(result == CUDA_SUCCESS, "the CUDA driver refuses a tensor map of [", shape.num_batches,
            ", ", shape.num_tokens, ", ", shape.num_heads, ", ", shape.head_dim, "]: error ",
            static_cast<int>(result));
  return map;
}

}  // namespace parallax::cuda
