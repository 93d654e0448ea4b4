// Gradients that are added up over the ranks while the backward pass still runs.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "optim/ranks.h"

namespace parallax::train {

/// Keeps the gradients of all parameters in buckets, flat buffers of one dtype in reverse order of
/// the parameters, which is about the order in which a backward pass finishes them. With one rank
/// there are no buckets, and gradients are what autograd makes of them.
class GradientBuckets {
 public:
  /// Large enough to use a network well, small enough that little is left when backward ends.
  static constexpr int64_t kBucketBytes = int64_t{25} << 20;

  GradientBuckets(std::vector<torch::Tensor> parameters, std::shared_ptr<optim::Ranks> ranks,
                  int64_t bucket_bytes = kBucketBytes);
  /// Where there are buckets, leaves the parameters without gradients.
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  /// Sets all gradients to zero, or with one rank to none.
  void reset();
  /// The next backward pass is the step's last: each bucket's sum over the ranks starts when all
  /// its gradients are there, bucket after bucket in the same order on every rank.
  void sum_with_next_backward();
  /// Blocks until the gradients are the sums. Starts what that backward pass did not reach.
  void finish();

  int64_t num_buckets() const { return static_cast<int64_t>(buckets_.size()); }

 private:
  struct Bucket {
    torch::Tensor flat;
    int64_t num_parameters = 0;
    int64_t num_missing = 0;  // gradients of this backward pass
  };
  class Hook;

  void note(size_t bucket_idx);
  void start_ready();

  std::vector<torch::Tensor> parameters_;
  std::shared_ptr<optim::Ranks> ranks_;
  std::vector<Bucket> buckets_;
  std::vector<optim::Ranks::Wait> waits_;  // of the first buckets, as many as have started
  bool is_armed_ = false;
};

}  // namespace parallax::train
