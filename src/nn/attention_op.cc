// Calls parallax::attention_forward, attention_backward and decode through Torch's dispatcher. The
// stable ABI that registers them has no autograd, so the derivative is declared here.
// SPDX-License-Identifier: Apache-2.0
#include "nn/attention_op.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "nn/find_op.h"
#include "parallax/backend.h"

namespace parallax::nn {
namespace {

using torch::Tensor;
using OptionalTensor = std::optional<Tensor>;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

using ForwardOp = FourTensors(const Tensor& q, const Tensor& r, const Tensor& k, const Tensor& v,
                              const OptionalTensor& cu_seqlens_q,
                              const OptionalTensor& cu_seqlens_k, std::optional<double> scale,
                              bool causal, std::optional<int64_t> window, bool deterministic,
                              bool return_stats);
using BackwardOp = FourTensors(const Tensor& d_out, const Tensor& q, const Tensor& r,
                               const Tensor& k, const Tensor& v, const Tensor& out,
                               const Tensor& out_softmax, const Tensor& lse, const Tensor& t_mean,
                               const OptionalTensor& cu_seqlens_q,
                               const OptionalTensor& cu_seqlens_k, std::optional<double> scale,
                               bool causal, std::optional<int64_t> window, bool deterministic);
using DecodeOp = FourTensors(const Tensor& q, const Tensor& r, const Tensor& k_cache,
                             const Tensor& v_cache, const OptionalTensor& cache_starts,
                             const OptionalTensor& cache_seqlens,
                             const OptionalTensor& cu_seqlens_q, const OptionalTensor& page_table,
                             const OptionalTensor& k_scale, const OptionalTensor& v_scale,
                             std::optional<double> scale, std::optional<int64_t> window,
                             bool batch_invariant);

/// The kernels read every stride but the innermost as it is; what was expanded from a scalar has 0.
Tensor unit_innermost_stride(const Tensor& tensor) {
  return tensor.stride(-1) == 1 ? tensor : tensor.clone(at::MemoryFormat::Contiguous);
}

struct AttentionCall {
  AttentionSpan span;
  bool is_recorded;  // by autograd; otherwise nothing is kept for a backward pass
};

class AttentionFunction : public torch::autograd::Function<AttentionFunction> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& r,
                        const Tensor& k, const Tensor& v, const AttentionCall& call) {
    static const auto op = find_op<ForwardOp>("attention_forward");
    const AttentionSpan& span = call.span;
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, out_softmax, lse, t_mean] =
        op.call(q, r, k, v, span.cu_seqlens, span.cu_seqlens, /*scale=*/std::nullopt,
                /*causal=*/true, span.window, /*deterministic=*/true,
                /*return_stats=*/call.is_recorded);
    if (!call.is_recorded) return out;
    ctx->save_for_backward({q, r, k, v, out, out_softmax, lse, t_mean});
    ctx->saved_data["cu_seqlens"] = span.cu_seqlens;
    ctx->saved_data["window"] = span.window;
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list d_outputs) {
    static const auto op = find_op<BackwardOp>("attention_backward");
    // Below autograd no graph is made: a second derivative would lack this term in silence.
    PLX_CHECK(
        !torch::GradMode::is_enabled(),
        "the gradient of attention was asked for with create_graph=true; double backward is not "
        "supported, use create_graph=false");
    const auto saved = ctx->get_saved_variables();
    const auto window = ctx->saved_data["window"].toOptional<int64_t>();
    const auto cu_seqlens = ctx->saved_data["cu_seqlens"].toOptional<Tensor>();
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [dq, dr, dk, dv] = op.call(unit_innermost_stride(d_outputs[0]), saved[0], saved[1],
                                    saved[2], saved[3], saved[4], saved[5], saved[6], saved[7],
                                    cu_seqlens, cu_seqlens, /*scale=*/std::nullopt,
                                    /*causal=*/true, window, /*deterministic=*/true);
    return {dq, dr, dk, dv, Tensor()};
  }
};

}  // namespace

bool has_attention_on(torch::Device device) {
  std::array<float, 64> memory{};
  TensorView x = make_view(memory.data(), {1, 1, 1, 64});
  if (device.is_cuda()) x.device = {DeviceType::kCuda, std::max<int>(device.index(), 0)};
  const auto all = backends();
  return std::any_of(all.begin(), all.end(), [&](const Backend* backend) {
    return backend->supports(ForwardArgs{.q = x, .r = x, .k = x, .v = x, .out = x}).ok;
  });
}

Tensor attention(const Tensor& q, const Tensor& r, const Tensor& k, const Tensor& v,
                 const AttentionSpan& span) {
  // The function itself runs without grad mode and cannot tell.
  const bool is_recorded =
      torch::GradMode::is_enabled() &&
      (q.requires_grad() || r.requires_grad() || k.requires_grad() || v.requires_grad());
  return AttentionFunction::apply(q, r, k, v, AttentionCall{span, is_recorded});
}

Tensor cached_attention(const Tensor& q, const Tensor& r, const Tensor& k_cache,
                        const Tensor& v_cache, const DecodeStep& step,
                        std::optional<int64_t> window) {
  static const auto op = find_op<DecodeOp>("decode");
  at::AutoDispatchBelowADInplaceOrView guard;
  return std::get<0>(op.call(q, r, k_cache, v_cache, /*cache_starts=*/std::nullopt,
                             step.cache_seqlens, step.cu_seqlens, /*page_table=*/std::nullopt,
                             /*k_scale=*/std::nullopt, /*v_scale=*/std::nullopt,
                             /*scale=*/std::nullopt, window, /*batch_invariant=*/false));
}

}  // namespace parallax::nn
