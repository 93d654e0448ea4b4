// One optimizer step's gradient.
// SPDX-License-Identifier: Apache-2.0
#include "train/step.h"

#include <ATen/autocast_mode.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "nn/loss.h"
#include "parallax/error.h"

namespace parallax::train {
namespace {

std::vector<torch::Tensor> gradients(const nn::Decoder& model) {
  std::vector<torch::Tensor> list;
  for (const auto& parameter : model->parameters())
    if (parameter.grad().defined()) list.push_back(parameter.grad());
  return list;
}

/// [number of tensors]: the 2-norm of each, in a few launches.
torch::Tensor norms(const std::vector<torch::Tensor>& tensors) {
  return torch::stack(at::_foreach_norm(tensors));
}

/// The name of the first parameter whose gradient has a NaN or infinity.
std::optional<std::string> first_bad_gradient(const nn::Decoder& model) {
  for (const auto& entry : model->named_parameters()) {
    const torch::Tensor& gradient = entry.value().grad();
    if (gradient.defined() && !gradient.isfinite().all().item<bool>())
      return "the gradient of " + entry.key();
  }
  return std::nullopt;
}

bool is_usable(double norm) { return norm <= kLargestNorm; }  // NaN is not

/// Torch's kernels check ids on a CPU only, and on a GPU the process would be lost.
void check_ids(const Batch& batch, int64_t vocab_size) {
  const torch::Tensor counted = batch.targets_BT.masked_fill(batch.targets_BT.eq(kIgnoreIndex), 0);
  for (const auto& [name, ids] : {std::pair("token", batch.tokens_BT), {"target", counted}}) {
    const auto [low_tensor, high_tensor] = ids.aminmax();
    const auto low = low_tensor.item<int64_t>(), high = high_tensor.item<int64_t>();
    PLX_CHECK(low >= 0 && high < vocab_size, name, " id ", low < 0 ? low : high,
              " is outside the model's vocabulary, 0 to ", vocab_size - 1);
  }
}

/// A copy on the device; to CUDA from pinned memory, so that nobody waits for it here.
torch::Tensor copy_to(torch::Device device, const torch::Tensor& ids) {
  return device.is_cuda() ? ids.pin_memory().to(device, /*non_blocking=*/true) : ids.to(device);
}

/// What makes the step's numbers unusable, if anything does.
std::optional<std::string> first_bad(const StepResult& result, const nn::Decoder& model,
                                     double clip_norm) {
  if (!std::isfinite(result.loss)) return "the loss";
  if (!std::isfinite(result.grad_norm))
    return first_bad_gradient(model).value_or("the norm of the gradient");
  if (!is_usable(clip_norm > 0 ? std::min(result.grad_norm, clip_norm) : result.grad_norm))
    return "the norm of the gradient";
  return std::nullopt;
}

}  // namespace

AutocastScope::AutocastScope(torch::Device device, torch::ScalarType compute)
    : device_(device.type()),
      was_enabled_(at::autocast::is_autocast_enabled(device_)),
      outer_dtype_(at::autocast::get_autocast_dtype(device_)) {
  at::autocast::increment_nesting();
  at::autocast::set_autocast_enabled(device_, compute == torch::kBFloat16);
  at::autocast::set_autocast_dtype(device_, torch::kBFloat16);
}

AutocastScope::~AutocastScope() {
  // The outermost scope drops the cached casts: the weights they were made of are about to change.
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, was_enabled_);
  at::autocast::set_autocast_dtype(device_, outer_dtype_);
}

StepGradients::StepGradients(nn::Decoder model, const StepOptions& options,
                             std::shared_ptr<optim::Ranks> ranks)
    : model_(std::move(model)),
      options_(options),
      ranks_(std::move(ranks)),
      buckets_(model_->parameters(), ranks_) {}

/// The sum of this rank's losses, float64 on the device; the gradients of it over num_targets are
/// added to the parameters' and then up over the ranks.
torch::Tensor StepGradients::add_gradients(const Batch& batch, int64_t num_targets) {
  const torch::Device device = model_->head_weight().device();
  const AutocastScope autocast(device, options_.compute);
  const int64_t num_rows = batch.tokens_BT.size(0) / ranks_->size();
  const auto micro_batches = [&](const torch::Tensor& ids_BT) {
    return copy_to(device, ids_BT.narrow(0, ranks_->rank() * num_rows, num_rows))
        .split(options_.micro_batch_size);
  };
  const auto tokens = micro_batches(batch.tokens_BT), targets = micro_batches(batch.targets_BT);
  torch::Tensor loss_sum = torch::zeros({}, torch::dtype(torch::kFloat64).device(device));
  for (size_t i = 0; i < tokens.size(); ++i) {
    const nn::CrossEntropySum loss =
        nn::chunked_cross_entropy(model_->hidden(tokens[i]).flatten(0, 1), model_->head_weight(),
                                  targets[i].flatten(), {.ignore_index = kIgnoreIndex});
    if (i + 1 == tokens.size()) buckets_.sum_with_next_backward();
    // Divided by the whole batch's targets, the micro-batches' gradients add up to the mean's.
    (loss.sum / static_cast<double>(num_targets)).backward();
    loss_sum += loss.sum.detach();
  }
  buckets_.finish();
  return loss_sum;
}

StepResult StepGradients::compute(const Batch& batch) {
  model_->train();
  buckets_.reset();
  const auto num_targets = batch.targets_BT.ne(kIgnoreIndex).sum().item<int64_t>();
  PLX_CHECK(num_targets > 0, "a batch without targets cannot be trained on");
  PLX_CHECK(batch.tokens_BT.size(0) % ranks_->size() == 0, "a batch of ", batch.tokens_BT.size(0),
            " sequences cannot be shared equally by ", ranks_->size(), " ranks");
  check_ids(batch, model_->config().vocab_size);

  std::vector<torch::Tensor> weights;
  for (const auto& parameter : model_->parameters()) weights.push_back(parameter.detach());
  const torch::Tensor largest_weight_norm = norms(weights).max();
  const torch::Tensor loss_sum = add_gradients(batch, num_targets);
  auto grads = gradients(model_);
  // The one time that the device is waited for.
  const torch::Tensor numbers = torch::stack({loss_sum, norms(grads).norm().to(torch::kFloat64),
                                              largest_weight_norm.to(torch::kFloat64)})
                                    .cpu();

  StepResult result;
  result.loss = ranks_->sum({numbers[0].item<double>()})[0] / static_cast<double>(num_targets);
  result.grad_norm = numbers[1].item<double>();
  result.largest_weight_norm = numbers[2].item<double>();
  result.first_bad = first_bad(result, model_, options_.clip_norm);
  // Not before the numbers are known to be good: one infinity would spread over all gradients.
  if (options_.clip_norm > 0 && !result.first_bad && result.grad_norm > options_.clip_norm)
    at::_foreach_mul_(grads, options_.clip_norm / result.grad_norm);
  return result;
}

std::optional<std::string> first_weight_beyond(double limit, const nn::Decoder& model) {
  torch::NoGradGuard no_grad;
  const torch::Tensor list = norms(model->parameters()).to(torch::kFloat64).cpu();
  if (list.le(limit).all().item<bool>()) return std::nullopt;
  const auto values = list.accessor<double, 1>();
  int64_t idx = 0;
  while (values[idx] <= limit) ++idx;
  return model->named_parameters()[static_cast<size_t>(idx)].key();
}

}  // namespace parallax::train
