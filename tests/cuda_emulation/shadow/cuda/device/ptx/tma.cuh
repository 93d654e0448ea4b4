// ptx/tma.cuh, emulated: a tensor map holds an emulation::Map.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstring>

#include "cuda_emulation/device.h"

namespace parallax::cuda::ptx {

struct BoxOrigin {
  int column, token, head, batch;
};

inline void copy_box(uint32_t target, const CUtensorMap& map, uint32_t barrier, BoxOrigin origin) {
  emulation::Map tensor;
  std::memcpy(&tensor, &map, sizeof tensor);
  emulation::copy_box(tensor, {.target = target,
                               .barrier = barrier,
                               .column = origin.column,
                               .token = origin.token,
                               .head = origin.head,
                               .batch = origin.batch});
}

}  // namespace parallax::cuda::ptx
