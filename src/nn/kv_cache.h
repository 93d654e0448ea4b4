// The cache of an attention layer: keys and values, nothing else.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include "nn/mixer.h"

namespace parallax::nn {

/// k and v [B, capacity, Hkv, D], normalised and rotated. Entries beyond a sequence's length are
/// uninitialised memory and are never read into a result.
struct KvCache : MixerCache {
  torch::Tensor k, v;

  int64_t bytes() const override { return static_cast<int64_t>(k.nbytes() + v.nbytes()); }

  /// Stores k_new and v_new [N, Hkv, D] at the positions of step, rounded to the cache's dtype.
  void append(const torch::Tensor& k_new, const torch::Tensor& v_new, const DecodeStep& step) {
    k.index_put_({step.batch_N, step.position_N}, k_new.to(k.scalar_type()));
    v.index_put_({step.batch_N, step.position_N}, v_new.to(v.scalar_type()));
  }
};

}  // namespace parallax::nn
