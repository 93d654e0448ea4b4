// One benchmark case: its tensors, our call, the peer's calls, and the check of our result.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace parallax::bench {

enum class Call { kForward, kBackward, kDecode };

/// Causal attention of B sequences of T tokens, or one new token each against T cached ones.
struct AttentionCase {
  Call call = Call::kForward;
  int64_t batch = 1, heads = 8, heads_kv = 8, tokens = 1024, head_dim = 128;
  torch::ScalarType dtype = torch::kBFloat16;

  std::string call_name() const;
  std::string dtype_name() const;
  /// "(1,8,8,1024,128)": B, Hq, Hkv, T, D.
  std::string shape() const;
  /// Of our call: 2 FLOP per multiply-add, visible pairs only; 8 D a pair and head forward, 16 D
  /// backward (eight products, as a pass that recomputes nothing twice would need).
  double flops() const;
  /// Keys and values read once; what decoding cannot do without.
  double bytes() const;
};

/// The calls to time. Every call computes all its outputs anew.
struct Candidate {
  std::string name;
  std::function<void()> run;
};

class AttentionTask {
 public:
  explicit AttentionTask(const AttentionCase& attention_case);

  /// Ours first, then PyTorch's scaled_dot_product_attention on tensors laid out as ours, [B, T, H,
  /// D], and on [B, H, T, D]; for grouped decoding also with the group's heads as query tokens,
  /// which saves it the copies of k and v.
  std::vector<Candidate> candidates() const;

  /// Compares our results for the newest tokens with the float64 reference: outputs and, for
  /// backward, the gradients of those tokens' q, r, k and v, which no other token touches. Returns
  /// the largest root-mean-square error over root mean square of any tensor; throws Error if that
  /// is not what rounding to the dtype explains.
  double check() const;

 private:
  torch::Tensor run_ours() const;

  AttentionCase case_;
  torch::Tensor q_, r_, k_, v_, d_out_, cache_seqlens_, cu_seqlens_;
};

}  // namespace parallax::bench
