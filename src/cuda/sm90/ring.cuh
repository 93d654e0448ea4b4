// Stages in shared memory that are filled and emptied in turn.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace parallax::cuda::sm90 {

/// A ring of stages: which one is next, and the parity of its present use.
template <int kStages>
struct Ring {
  int stage = 0;
  int parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

}  // namespace parallax::cuda::sm90
