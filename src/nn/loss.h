// Cross-entropy of a language model's head without the full logits.
//
// Legend: N tokens, C hidden size, V vocabulary.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>

namespace parallax::nn {

/// Tokens with this target do not count, here and wherever targets are handled.
inline constexpr int64_t kIgnoreIndex = -100;

struct CrossEntropyOptions {
  int64_t ignore_index = kIgnoreIndex;
  /// Tokens whose logits exist at one time; chosen when 0: for 128 MiB of float32 logits, on CUDA
  /// for 1 GiB.
  int64_t chunk_tokens = 0;
};

struct CrossEntropySum {
  torch::Tensor sum;    ///< float32 scalar (float64 for float64 inputs), nats; differentiable
  torch::Tensor count;  ///< int64 scalar: tokens that counted
};

/// sum over tokens of -log softmax(hidden weight^T)[target]:
///   hidden [N, C]   weight [V, C]   targets int64 [N], each in [0, V) or ignore_index
/// Differentiable once with respect to hidden and weight. At no time do more than chunk_tokens x V
/// logits exist: where a gradient is needed, each chunk's share of it is computed right away, so
/// the logits are never computed twice. Logits and their gradient have autocast's dtype where it is
/// on; the log-sum-exp, the sums over tokens and weight's gradient are float32.
/// Throws parallax::Error on wrong shapes and, where targets are on a CPU, on one out of range; on
/// a CUDA device they are the caller's to check, as nothing here waits for the device.
CrossEntropySum chunked_cross_entropy(const torch::Tensor& hidden_NC,
                                      const torch::Tensor& weight_VC,
                                      const torch::Tensor& targets_N,
                                      const CrossEntropyOptions& options = {});

}  // namespace parallax::nn
