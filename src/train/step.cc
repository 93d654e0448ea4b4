// One optimizer step's gradient.
// SPDX-License-Identifier: Apache-2.0
#include "train/step.h"

#include <ATen/autocast_mode.h>
#include <torch/nn/utils/clip_grad.h>

#include <algorithm>
#include <cmath>

#include "nn/loss.h"
#include "parallax/error.h"

namespace parallax::train {
namespace {

/// The 2-norm of all gradients together.
double gradient_norm(const nn::Decoder& model) {
  std::vector<torch::Tensor> norms;
  for (const auto& parameter : model->parameters())
    if (parameter.grad().defined()) norms.push_back(parameter.grad().norm());
  return torch::stack(norms).norm().item<double>();
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

}  // namespace

bool has_fast_bfloat16(torch::Device device) {
  if (!device.is_cpu()) return true;
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

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

StepResult compute_gradients(nn::Decoder& model, const Batch& batch, const StepOptions& options) {
  model->train();
  model->zero_grad();
  const torch::Device device = model->head_weight().device();
  const auto num_targets = batch.targets_BT.ne(kIgnoreIndex).sum().item<int64_t>();
  PLX_CHECK(num_targets > 0, "a batch without targets cannot be trained on");

  double loss_sum = 0;
  const auto tokens = batch.tokens_BT.split(options.micro_batch_size);
  const auto targets = batch.targets_BT.split(options.micro_batch_size);
  {
    const AutocastScope autocast(device, options.compute);
    for (size_t i = 0; i < tokens.size(); ++i) {
      const torch::Tensor hidden_BTC = model->hidden(tokens[i].to(device));
      const nn::CrossEntropySum loss = nn::chunked_cross_entropy(
          hidden_BTC.flatten(0, 1), model->head_weight(), targets[i].to(device).flatten(),
          {.ignore_index = kIgnoreIndex});
      // Divided by the whole batch's targets, the micro-batches' gradients add up to the mean's.
      (loss.sum / static_cast<double>(num_targets)).backward();
      loss_sum += loss.sum.item<double>();
    }
  }

  StepResult result;
  result.loss = loss_sum / static_cast<double>(num_targets);
  result.grad_norm = gradient_norm(model);
  const bool clips = options.clip_norm > 0;
  // Before clipping, which would spread one infinity over all gradients.
  if (!std::isfinite(result.loss))
    result.first_bad = "the loss";
  else if (!std::isfinite(result.grad_norm))
    result.first_bad = first_bad_gradient(model).value_or("the norm of the gradient");
  else if (!is_usable(clips ? std::min(result.grad_norm, options.clip_norm) : result.grad_norm))
    result.first_bad = "the norm of the gradient";
  else if (clips)
    torch::nn::utils::clip_grad_norm_(model->parameters(), options.clip_norm);
  return result;
}

std::optional<std::string> first_weight_beyond(double limit, const nn::Decoder& model) {
  torch::NoGradGuard no_grad;
  const auto norms = torch::stack(at::_foreach_norm(model->parameters())).to(torch::kFloat64).cpu();
  if (norms.le(limit).all().item<bool>()) return std::nullopt;
  const auto values = norms.accessor<double, 1>();
  int64_t idx = 0;
  while (values[idx] <= limit) ++idx;
  return model->named_parameters()[static_cast<size_t>(idx)].key();
}

}  // namespace parallax::train
