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

/// The rings of a step's two parts, which advance together.
template <int kFirst, int kLast>
class StepRings {
 public:
  __device__ __forceinline__ const Ring<kFirst>& first() const { return first_; }
  __device__ __forceinline__ const Ring<kLast>& last() const { return last_; }
  __device__ __forceinline__ void advance() { first_.advance(), last_.advance(); }

 private:
  Ring<kFirst> first_;
  Ring<kLast> last_;
};

/// One ring's registers where both have as many stages.
template <int kStages>
class StepRings<kStages, kStages> {
 public:
  __device__ __forceinline__ const Ring<kStages>& first() const { return ring_; }
  __device__ __forceinline__ const Ring<kStages>& last() const { return ring_; }
  __device__ __forceinline__ void advance() { ring_.advance(); }

 private:
  Ring<kStages> ring_;
};

}  // namespace parallax::cuda::sm90
