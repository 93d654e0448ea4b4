// Tensor maps of the emulated device.
// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "cuda/tensor_map.h"
#include "cuda_emulation/device.h"

namespace parallax::cuda {

CUtensorMap make_tensor_map(const Operand<const void>& tensor, const MapShape& shape,
                            DType /*dtype*/) {
  const emulation::Map map{
      .data = tensor.data,
      .sizes = {shape.head_dim, shape.num_tokens, shape.num_heads, shape.num_batches},
      .strides = {2 * tensor.token_stride, 2 * tensor.head_stride, 2 * tensor.batch_stride},
      .box_tokens = shape.box_tokens};
  CUtensorMap result;
  static_assert(sizeof map <= sizeof result);
  std::memcpy(&result, &map, sizeof map);
  return result;
}

/// Only addresses and strides of 16 bytes: the driver's other rules need no emulation.
const char* map_refusal(const Operand<const void>& tensor, const MapShape& /*shape*/) {
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 &&
                       tensor.token_stride % 8 == 0 && tensor.head_stride % 8 == 0;
  return aligned ? nullptr : "it is not aligned to 16 bytes";
}

}  // namespace parallax::cuda
