// The gradient of one optimizer step: micro-batches, mixed precision, clipping.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "nn/decoder.h"
#include "optim/ranks.h"
#include "train/data_source.h"
#include "train/gradient_buckets.h"

namespace parallax::train {

/// The largest norm of a weight, and of the gradient that a step uses. Below it no step overflows
/// float32: moments are averages of gradients and their squares (1e30 at most), AdamW moves a
/// weight by lr times 1e15 / eps at most and Muon by lr times an orthogonal matrix, and the
/// recipe's ranges keep lr and 1 / eps small enough (recipe_fields.h).
inline constexpr double kLargestNorm = 1e15;
/// A weight whose norm is larger is on its way there: the largest embedding of a sound model has
/// 1e4. A step from here stays below kLargestNorm, as lr times its multiplier and weight_decay is
/// 1e9 at most (except for AdamW with beta2 < beta1^2, which may divide by eps).
inline constexpr double kUnusualNorm = 1e5;

struct StepOptions {
  /// Sequences of one forward pass on a rank.
  int64_t micro_batch_size = 1;
  /// kFloat32, or kBFloat16 by autocast; parameters and their gradients are float32 either way.
  torch::ScalarType compute = torch::kFloat32;
  /// Largest norm of the whole gradient; 0 for none.
  double clip_norm = 0;
};

struct StepResult {
  double loss = 0;       ///< mean over the batch's targets, nats
  double grad_norm = 0;  ///< before clipping
  /// Of the parameters that the gradient is of; NaN if one has a NaN.
  double largest_weight_norm = 0;
  /// What is NaN, infinite or beyond kLargestNorm, if anything: "the loss", or the first such
  /// gradient by its name, or the norm of all of them.
  std::optional<std::string> first_bad;
};

/// Switches autocast to bfloat16 for its lifetime, on `device`, if compute is kBFloat16.
class AutocastScope {
 public:
  AutocastScope(torch::Device device, torch::ScalarType compute);
  ~AutocastScope();
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  torch::DeviceType device_;
  bool was_enabled_;
  torch::ScalarType outer_dtype_;
};

/// Computes gradients for the optimizer, on one rank of several: each takes its share of a batch.
class StepGradients {
 public:
  StepGradients(nn::Decoder model, const StepOptions& options,
                std::shared_ptr<optim::Ranks> ranks = std::make_shared<optim::Ranks>());

  /// Replaces the parameters' gradients by those of the mean loss over all targets of the batch,
  /// the same on every rank, and clips them. The same batch in other micro-batches or on another
  /// number of ranks gives the same gradient up to rounding. The batch is on the CPU, all of it on
  /// every rank; the model's device is waited for once, when all is computed.
  /// Throws if the batch has no targets, an id that the model does not have, or a number of
  /// sequences that the ranks cannot share equally.
  StepResult compute(const Batch& batch);

 private:
  torch::Tensor add_gradients(const Batch& batch, int64_t num_targets);

  nn::Decoder model_;
  StepOptions options_;
  std::shared_ptr<optim::Ranks> ranks_;
  GradientBuckets buckets_;
};

/// The name of the first parameter whose norm is NaN, infinite or beyond `limit`.
std::optional<std::string> first_weight_beyond(double limit, const nn::Decoder& model);

}  // namespace parallax::train
