// The copy engine (TMA): boxes of a tensor into shared memory.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstdint>

namespace parallax::cuda::ptx {

/// First element of a box: column (of D), token, head, batch.
struct BoxOrigin {
  int column, token, head, batch;
};

/// Copies one box and counts its bytes at `barrier`. What lies outside the tensor becomes zeros.
__device__ __forceinline__ void copy_box(uint32_t target, const CUtensorMap& map, uint32_t barrier,
                                         BoxOrigin origin) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5, %6}], [%2];" ::"r"(target),
      "l"(&map), "r"(barrier), "r"(origin.column), "r"(origin.token), "r"(origin.head),
      "r"(origin.batch)
      : "memory");
}

}  // namespace parallax::cuda::ptx
