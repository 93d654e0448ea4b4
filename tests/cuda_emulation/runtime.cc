// The CUDA runtime that the host side of the backends links to: one emulated Hopper whose memory is
// the host's, and the one function of the driver that tensor_map.cc asks for.
// SPDX-License-Identifier: Apache-2.0
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <string_view>

#include "cuda_emulation/device.h"

namespace parallax::emulation {
namespace {

constexpr cuuint64_t kMaxStride = cuuint64_t{1} << 40;

/// What cuTensorMapEncodeTiled refuses, as far as the kernels could break it. Refused too: what the
/// emulated copy engine does not know.
bool is_valid(const void* data, const Map& map, const cuuint32_t* box, const cuuint32_t* every) {
  bool valid = reinterpret_cast<uintptr_t>(data) % 16 == 0 && box[0] == 64 && box[1] >= 1 &&
               box[1] <= 256 && box[2] == 1 && box[3] == 1;
  for (int dim = 0; dim < 4; ++dim)
    valid &= map.sizes[dim] >= 1 && map.sizes[dim] <= int64_t{1} << 32 && every[dim] == 1;
  for (const int64_t stride : map.strides)
    valid &= stride % 16 == 0 && static_cast<cuuint64_t>(stride) < kMaxStride;
  return valid;
}

/// A CUtensorMap that holds a Map.
CUresult encode(CUtensorMap* result, CUtensorMapDataType, cuuint32_t rank, void* data,
                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                const cuuint32_t* every, CUtensorMapInterleave interleave,
                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  if (rank != 4 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
      swizzle != CU_TENSOR_MAP_SWIZZLE_128B || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
    return CUDA_ERROR_INVALID_VALUE;
  Map map{.data = data, .sizes = {}, .strides = {}, .box_tokens = static_cast<int>(box[1])};
  for (int dim = 0; dim < 4; ++dim) map.sizes[dim] = static_cast<int64_t>(sizes[dim]);
  for (int dim = 0; dim < 3; ++dim) map.strides[dim] = static_cast<int64_t>(strides[dim]);
  if (!is_valid(data, map, box, every)) return CUDA_ERROR_INVALID_VALUE;
  static_assert(sizeof map <= sizeof *result);
  std::memcpy(result, &map, sizeof map);
  return CUDA_SUCCESS;
}

}  // namespace
}  // namespace parallax::emulation

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
/// Few multiprocessors, so that persistent blocks get several tiles even in small cases.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int /*device*/) {
  *properties = {};
  std::strcpy(properties->name, "emulated device");
  properties->major = 9;
  properties->multiProcessorCount = 3;
  properties->l2CacheSize = 50 << 20;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "cudaErrorInvalidValue" : "an error";
}
const char* cudaGetErrorString(cudaError_t) { return "of the emulated device"; }

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  constexpr size_t kAlignment = 256;
  *pointer = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
  return *pointer != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(target, source, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* target, int value, size_t bytes) {
  if (bytes > 0) std::memset(target, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(target, value, bytes);
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return value >= 0 && static_cast<unsigned>(value) <= parallax::emulation::shared_limit()
             ? cudaSuccess
             : cudaErrorInvalidValue;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool known = std::string_view(symbol) == "cuTensorMapEncodeTiled";
  *function = known ? reinterpret_cast<void*>(&parallax::emulation::encode) : nullptr;
  *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

}  // extern "C"
