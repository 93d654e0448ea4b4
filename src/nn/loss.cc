// Chunked cross-entropy.
//
// d loss / d logits = softmax(logits) - onehot(target), known as soon as the logits are; only the
// scalar that the loss is later multiplied with is not. So the forward pass computes both gradients
// for a factor of one, and the backward pass multiplies.
// SPDX-License-Identifier: Apache-2.0
#include "nn/loss.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "nn/linear.h"
#include "parallax/error.h"

namespace parallax::nn {
namespace {

using torch::Tensor;

struct Sums {
  Tensor loss{};
  Tensor d_hidden{}, d_weight{};  // undefined unless asked for
};

/// Everything that does not depend on the chunk.
struct Problem {
  Tensor hidden, weight, targets;
  CrossEntropyOptions options;
  bool needs_d_hidden = false, needs_d_weight = false;
};

/// Adds one chunk's loss and gradients.
void add_chunk(const Problem& problem, int64_t begin, int64_t end, Sums& sums) {
  const auto wide = sums.loss.scalar_type();
  const Tensor hidden = problem.hidden.slice(0, begin, end);
  const Tensor targets = problem.targets.slice(0, begin, end);
  const Tensor counts = targets != problem.options.ignore_index;
  const Tensor safe_targets = targets.masked_fill(~counts, 0).unsqueeze(1);

  Tensor logits = torch::mm(hidden, problem.weight.t()).to(wide);
  const Tensor lse = logits.logsumexp(1, /*keepdim=*/true);
  const Tensor losses = (lse - logits.gather(1, safe_targets)).squeeze(1);
  sums.loss += losses.masked_fill(~counts, 0).sum();
  if (!problem.needs_d_hidden && !problem.needs_d_weight) return;

  Tensor& d_logits = logits.sub_(lse).exp_();  // in place: the largest tensor here
  d_logits.scatter_add_(1, safe_targets, torch::full_like(lse, -1));
  d_logits.mul_(counts.unsqueeze(1));
  const Tensor rounded = d_logits.to(hidden.scalar_type());
  if (problem.needs_d_hidden)
    sums.d_hidden.slice(0, begin, end).copy_(torch::mm(rounded, problem.weight));
  if (!problem.needs_d_weight) return;
  if (rounded.scalar_type() == wide) {
    sums.d_weight.addmm_(rounded.t(), hidden);
  } else {
    sums.d_weight += torch::mm(rounded.t(), hidden);
  }
}

Sums run(const Problem& problem) {
  const auto wide = at::promote_types(problem.hidden.scalar_type(), torch::kFloat32);
  const auto options = problem.hidden.options().dtype(wide).requires_grad(false);
  Sums sums{.loss = torch::zeros({}, options)};
  if (problem.needs_d_hidden) sums.d_hidden = torch::empty(problem.hidden.sizes(), options);
  if (problem.needs_d_weight) sums.d_weight = torch::zeros(problem.weight.sizes(), options);
  const int64_t num_tokens = problem.hidden.size(0), vocab_size = problem.weight.size(0);
  // Each chunk adds a whole [V, C] to weight's gradient: few large ones where there is the memory.
  const int64_t logits_per_chunk = int64_t{1} << (problem.hidden.is_cuda() ? 28 : 25);
  const int64_t chunk = problem.options.chunk_tokens > 0
                            ? problem.options.chunk_tokens
                            : std::max<int64_t>(1, logits_per_chunk / vocab_size);
  for (int64_t begin = 0; begin < num_tokens; begin += chunk)
    add_chunk(problem, begin, std::min(begin + chunk, num_tokens), sums);
  return sums;
}

class CrossEntropyFunction : public torch::autograd::Function<CrossEntropyFunction> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& hidden,
                        const Tensor& weight, Problem problem) {
    Sums sums = run(problem);
    ctx->save_for_backward({sums.d_hidden, sums.d_weight});
    ctx->saved_data["hidden_dtype"] = static_cast<int64_t>(hidden.scalar_type());
    ctx->saved_data["weight_dtype"] = static_cast<int64_t>(weight.scalar_type());
    return sums.loss;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list d_outputs) {
    const auto saved = ctx->get_saved_variables();
    const auto scaled = [&](const Tensor& gradient, const char* dtype_key) {
      const auto dtype = static_cast<torch::ScalarType>(ctx->saved_data[dtype_key].toInt());
      return gradient.defined() ? (gradient * d_outputs[0]).to(dtype) : Tensor();
    };
    return {scaled(saved[0], "hidden_dtype"), scaled(saved[1], "weight_dtype"), Tensor()};
  }
};

void check(const Tensor& hidden, const Tensor& weight, const Tensor& targets,
           const CrossEntropyOptions& options) {
  PLX_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1),
            "cross-entropy: hidden must be [N, C] and weight [V, C], got ", hidden.sizes(), " and ",
            weight.sizes());
  PLX_CHECK(targets.dim() == 1 && targets.size(0) == hidden.size(0) &&
                targets.scalar_type() == torch::kInt64,
            "cross-entropy: targets must be int64 [", hidden.size(0), "], got ",
            targets.scalar_type(), " ", targets.sizes());
  if (!targets.device().is_cpu()) return;  // looking would wait for all of the device's work
  const Tensor wrong =
      ((targets < 0) | (targets >= weight.size(0))) & (targets != options.ignore_index);
  if (!wrong.any().item<bool>()) return;
  const auto token_idx = wrong.nonzero()[0].item<int64_t>();
  PLX_FAIL("cross-entropy: target ", targets[token_idx].item<int64_t>(), " of token ", token_idx,
           " is outside the vocabulary, 0 to ", weight.size(0) - 1);
}

}  // namespace

CrossEntropySum chunked_cross_entropy(const Tensor& hidden_NC, const Tensor& weight_VC,
                                      const Tensor& targets_N, const CrossEntropyOptions& options) {
  check(hidden_NC, weight_VC, targets_N, options);
  const bool grad = torch::GradMode::is_enabled();
  // Cast once here; inside, autocast would cast the weight again for every chunk.
  const auto dtype = compute_dtype(hidden_NC);
  const Problem problem{.hidden = hidden_NC.detach().to(dtype),
                        .weight = weight_VC.detach().to(dtype),
                        .targets = targets_N,
                        .options = options,
                        .needs_d_hidden = grad && hidden_NC.requires_grad(),
                        .needs_d_weight = grad && weight_VC.requires_grad()};
  return {.sum = CrossEntropyFunction::apply(hidden_NC, weight_VC, problem),
          .count = (targets_N != options.ignore_index).sum()};
}

}  // namespace parallax::nn
