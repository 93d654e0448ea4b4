// Gradient buckets: autograd adds into views of them, so that nothing is copied.
// SPDX-License-Identifier: Apache-2.0
#include "train/gradient_buckets.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

namespace parallax::train {

/// Called by autograd once the gradient of a parameter is complete for a backward pass.
class GradientBuckets::Hook : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(GradientBuckets& buckets, size_t bucket_idx) : buckets_(buckets), bucket_idx_(bucket_idx) {}
  void operator()(const torch::autograd::Variable&) override { buckets_.note(bucket_idx_); }

 private:
  GradientBuckets& buckets_;
  size_t bucket_idx_;
};

GradientBuckets::GradientBuckets(std::vector<torch::Tensor> parameters,
                                 std::shared_ptr<optim::Ranks> ranks, int64_t bucket_bytes)
    : parameters_(std::move(parameters)), ranks_(std::move(ranks)) {
  if (ranks_->size() == 1) return;
  std::vector<torch::Tensor> members;
  int64_t num_elements = 0;
  const auto close = [&] {
    if (members.empty()) return;
    const torch::Tensor flat =
        torch::zeros({num_elements}, members[0].options().requires_grad(false));
    for (int64_t begin = 0; torch::Tensor & parameter : members) {
      parameter.mutable_grad() = flat.narrow(0, begin, parameter.numel()).view_as(parameter);
      begin += parameter.numel();
      torch::autograd::impl::set_post_acc_grad_hooks(
          parameter, std::make_unique<Hook>(*this, buckets_.size()));
    }
    buckets_.push_back({.flat = flat, .num_parameters = static_cast<int64_t>(members.size())});
    members.clear();
    num_elements = 0;
  };
  for (auto parameter = parameters_.rbegin(); parameter != parameters_.rend(); ++parameter) {
    const bool fits = members.empty() || (members[0].dtype() == parameter->dtype() &&
                                          (num_elements + parameter->numel()) *
                                                  static_cast<int64_t>(parameter->element_size()) <=
                                              bucket_bytes);
    if (!fits) close();
    members.push_back(*parameter);
    num_elements += parameter->numel();
  }
  close();
}

GradientBuckets::~GradientBuckets() {
  if (buckets_.empty()) return;
  for (torch::Tensor& parameter : parameters_) {
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
    parameter.mutable_grad().reset();
  }
}

void GradientBuckets::reset() {
  is_armed_ = false;
  waits_.clear();
  for (Bucket& bucket : buckets_) bucket.flat.zero_();
  if (!buckets_.empty()) return;
  for (torch::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
}

void GradientBuckets::sum_with_next_backward() {
  is_armed_ = true;
  for (Bucket& bucket : buckets_) bucket.num_missing = bucket.num_parameters;
}

void GradientBuckets::note(size_t bucket_idx) {
  if (!is_armed_) return;
  --buckets_[bucket_idx].num_missing;
  start_ready();
}

void GradientBuckets::start_ready() {
  while (waits_.size() < buckets_.size() && buckets_[waits_.size()].num_missing == 0)
    waits_.push_back(ranks_->start_sum(buckets_[waits_.size()].flat));
}

void GradientBuckets::finish() {
  is_armed_ = false;
  for (Bucket& bucket : buckets_) bucket.num_missing = 0;
  start_ready();
  for (const auto& wait : waits_) wait();
  waits_.clear();
}

}  // namespace parallax::train
