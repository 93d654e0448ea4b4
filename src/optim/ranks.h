// The processes that train one model together, each with a copy of it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <exception>
#include <functional>
#include <vector>

#include "parallax/error.h"

namespace parallax::optim {

/// Thrown on a rank that ends because another one failed and says why.
struct OtherRankTells : Error {
  OtherRankTells() : Error("another process of the run says why it ended") {}
};

/// This base is the one process that trains alone: nothing is exchanged, everything is immediate.
/// All ranks must make the same calls in the same order.
class Ranks {
 public:
  /// Blocks until the tensor that it belongs to may be used; to be called once.
  using Wait = std::function<void()>;

  virtual ~Ranks() = default;
  virtual int rank() const { return 0; }
  virtual int size() const { return 1; }
  bool is_first() const { return rank() == 0; }

  /// Starts adding `tensor` (contiguous, on the run's device) up over the ranks in place: the same
  /// bits on each. Ordered after what the current stream was given before.
  virtual Wait start_sum(torch::Tensor tensor) {
    (void)tensor;
    return [] {};
  }
  /// Starts replacing `tensor` (likewise) by that of rank `root`.
  virtual Wait start_broadcast(torch::Tensor tensor, int root) {
    (void)tensor, (void)root;
    return [] {};
  }
  /// The sums of host numbers over the ranks, the same bits on each.
  virtual std::vector<double> sum(std::vector<double> numbers) { return numbers; }

  /// Runs `work` on the first rank while the others wait for it. Where it throws, the first rank
  /// throws that, and the others OtherRankTells.
  void first_does(const std::function<void()>& work) {
    std::exception_ptr error;
    if (is_first()) {
      try {
        work();
      } catch (...) {
        error = std::current_exception();
      }
    }
    const bool failed = sum({error ? 1.0 : 0.0})[0] > 0;
    if (error) std::rethrow_exception(error);
    if (failed) throw OtherRankTells();
  }
};

}  // namespace parallax::optim
