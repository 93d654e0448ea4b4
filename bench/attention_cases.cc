// SPDX-License-Identifier: Apache-2.0
#include "attention_cases.h"

#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <array>
#include <optional>

#include "nn/attention_op.h"
#include "parallax/backend.h"

namespace parallax::bench {
namespace {

using torch::Tensor;

/// Newest tokens that the check looks at: the float64 loops take seconds for a few.
constexpr int64_t kCheckedTokens = 8;

Tensor randn(std::initializer_list<int64_t> sizes, torch::ScalarType dtype) {
  return at::randn(sizes, torch::kFloat32).to(dtype);
}

TensorView view_of(const Tensor& tensor) {
  TensorView view;
  view.data = tensor.data_ptr();
  view.dtype = tensor.scalar_type() == torch::kInt32 ? DType::kInt32 : DType::kFloat64;
  view.rank = static_cast<int>(tensor.dim());
  for (int dim = 0; dim < view.rank; ++dim) {
    view.sizes[static_cast<size_t>(dim)] = tensor.size(dim);
    view.strides[static_cast<size_t>(dim)] = tensor.stride(dim);
  }
  return view;
}

const Backend& reference_backend() {
  for (const Backend* backend : backends())
    if (backend->name() == "reference") return *backend;
  PLX_FAIL("this build has no reference backend");
}

/// Root mean square of the error over that of the truth; infinite if a number is not finite.
double relative_error(const Tensor& result, const Tensor& truth) {
  const Tensor error = result.to(torch::kFloat64) - truth;
  return (error.square().mean().sqrt() / truth.square().mean().sqrt()).item<double>();
}

double allowed_error(torch::ScalarType dtype) {
  // Results, weights and score gradients are each rounded to the dtype: a few 2^-9 for bfloat16.
  if (dtype == torch::kBFloat16) return 1e-2;
  return dtype == torch::kFloat16 ? 1.5e-3 : 1e-5;
}

double worst_error(const std::vector<std::array<Tensor, 2>>& pairs, const AttentionCase& which) {
  double worst = 0.0;
  for (const auto& [result, truth] : pairs) {
    const double error = relative_error(result, truth);
    PLX_CHECK(error <= allowed_error(which.dtype), which.call_name(), " ", which.dtype_name(), " ",
              which.shape(), ": relative error ", error, ", allowed ", allowed_error(which.dtype));
    worst = std::max(worst, error);
  }
  return worst;
}

Tensor softmax_attention(const Tensor& q, const Tensor& k, const Tensor& v, bool is_causal) {
  return at::scaled_dot_product_attention(q, k, v, /*attn_mask=*/{}, /*dropout_p=*/0.0, is_causal,
                                          /*scale=*/std::nullopt,
                                          /*enable_gqa=*/q.size(1) != k.size(1));
}

/// Gradients through autograd, the forward pass done once beforehand.
std::function<void()> gradients_of(const Tensor& out, std::vector<Tensor> inputs, Tensor d_out) {
  return [out, inputs = std::move(inputs), d_out = std::move(d_out)] {
    torch::autograd::grad({out}, inputs, {d_out}, /*retain_graph=*/true);
  };
}

}  // namespace

std::string AttentionCase::call_name() const {
  return call == Call::kForward ? "forward" : call == Call::kBackward ? "backward" : "decode";
}

std::string AttentionCase::dtype_name() const {
  if (dtype == torch::kBFloat16) return "bfloat16";
  return dtype == torch::kFloat16 ? "float16" : "float32";
}

std::string AttentionCase::shape() const {
  std::string text = "(";
  for (const int64_t size : {batch, heads, heads_kv, tokens}) text += std::to_string(size) + ",";
  return text + std::to_string(head_dim) + ")";
}

double AttentionCase::flops() const {
  const auto t = static_cast<double>(tokens);
  const double pairs = call == Call::kDecode ? t : t * (t + 1) / 2;
  const double per_pair = (call == Call::kBackward ? 16.0 : 8.0) * static_cast<double>(head_dim);
  return pairs * per_pair * static_cast<double>(batch * heads);
}

double AttentionCase::bytes() const {
  return 2.0 * static_cast<double>(batch * heads_kv * tokens * head_dim) *
         static_cast<double>(c10::elementSize(dtype));
}

AttentionTask::AttentionTask(const AttentionCase& attention_case) : case_(attention_case) {
  const auto& [call, batch, heads, heads_kv, tokens, head_dim, dtype] = case_;
  at::manual_seed(1);
  const bool decodes = call == Call::kDecode, differentiates = call == Call::kBackward;
  const int64_t queries = decodes ? 1 : tokens;
  q_ = randn({batch, queries, heads, head_dim}, dtype);
  r_ = randn({batch, queries, heads, head_dim}, dtype);
  k_ = randn({batch, tokens, heads_kv, head_dim}, dtype);
  v_ = randn({batch, tokens, heads_kv, head_dim}, dtype);
  if (differentiates) {
    d_out_ = randn({batch, queries, heads, head_dim}, dtype);
    for (Tensor* tensor : {&q_, &r_, &k_, &v_}) tensor->requires_grad_();
  }
  cache_seqlens_ = at::full({batch}, tokens, torch::kInt32);
  cu_seqlens_ = at::arange(batch + 1, torch::kInt32);
}

Tensor AttentionTask::run_ours() const {
  if (case_.call != Call::kDecode) return nn::attention(q_, r_, k_, v_, {});
  return nn::cached_attention(q_.squeeze(1), r_.squeeze(1), k_, v_,
                              {.cu_seqlens = cu_seqlens_,
                               .cache_seqlens = cache_seqlens_,
                               .batch_N = {},
                               .position_N = {}},
                              std::nullopt)
      .unsqueeze(1);
}

std::vector<Candidate> AttentionTask::candidates() const {
  const bool decodes = case_.call == Call::kDecode;
  const auto by_heads = [](const Tensor& x) { return x.transpose(1, 2); };
  // A leaf of its own, so that its gradient has the layout in question.
  const auto dense = [](const Tensor& x) {
    return x.detach().transpose(1, 2).contiguous().requires_grad_(x.requires_grad());
  };
  const Tensor q = dense(q_), k = dense(k_), v = dense(v_);
  std::vector<Candidate> list;
  if (case_.call == Call::kBackward) {
    list.push_back({"parallax", gradients_of(run_ours(), {q_, r_, k_, v_}, d_out_)});
    list.push_back({"sdpa", gradients_of(softmax_attention(by_heads(q_), by_heads(k_), by_heads(v_),
                                                           /*is_causal=*/true),
                                         {q_, k_, v_}, by_heads(d_out_))});
    list.push_back({"sdpa_bhtd", gradients_of(softmax_attention(q, k, v, /*is_causal=*/true),
                                              {q, k, v}, dense(d_out_))});
    return list;
  }
  list.push_back({"parallax", [this] { run_ours(); }});
  list.push_back({"sdpa", [=, this] {
                    softmax_attention(by_heads(q_), by_heads(k_), by_heads(v_), !decodes);
                  }});
  list.push_back({"sdpa_bhtd", [=] { softmax_attention(q, k, v, !decodes); }});
  if (decodes && case_.heads != case_.heads_kv) {
    const Tensor grouped = q.view({case_.batch, case_.heads_kv, -1, case_.head_dim});
    list.push_back({"sdpa_grouped", [=] { softmax_attention(grouped, k, v, false); }});
  }
  return list;
}

double AttentionTask::check() const {
  const int64_t queries = q_.size(1), count = std::min(kCheckedTokens, queries);
  const auto newest = [&](const Tensor& x) {
    return x.detach().narrow(0, 0, 1).narrow(1, x.size(1) - count, count);
  };
  const auto widen = [](const Tensor& x) { return x.to(torch::kFloat64).contiguous(); };
  const Tensor q = widen(newest(q_)), r = widen(newest(r_));
  const Tensor k = widen(k_.detach().narrow(0, 0, 1)), v = widen(v_.detach().narrow(0, 0, 1));
  const Tensor out = at::empty_like(q), out_softmax = at::empty_like(q);
  const Tensor lse = at::empty({1, case_.heads, count}, torch::kFloat64);
  const Tensor t_mean = at::empty_like(lse);
  reference_backend().forward({.q = view_of(q),
                               .r = view_of(r),
                               .k = view_of(k),
                               .v = view_of(v),
                               .out = view_of(out),
                               .out_softmax = view_of(out_softmax),
                               .lse = view_of(lse),
                               .t_mean = view_of(t_mean)});
  const Tensor ours = run_ours();
  std::vector<std::array<Tensor, 2>> pairs{{newest(ours), out}};
  if (case_.call == Call::kBackward) {
    const auto gradients = torch::autograd::grad({ours}, {q_, r_, k_, v_}, {d_out_});
    const Tensor d_out = widen(newest(d_out_));
    const Tensor dq = at::empty_like(q), dr = at::empty_like(q);
    const Tensor dk = at::empty_like(k), dv = at::empty_like(k);
    reference_backend().backward({.d_out = view_of(d_out),
                                  .q = view_of(q),
                                  .r = view_of(r),
                                  .k = view_of(k),
                                  .v = view_of(v),
                                  .out = view_of(out),
                                  .out_softmax = view_of(out_softmax),
                                  .lse = view_of(lse),
                                  .t_mean = view_of(t_mean),
                                  .dq = view_of(dq),
                                  .dr = view_of(dr),
                                  .dk = view_of(dk),
                                  .dv = view_of(dv)});
    pairs.push_back({newest(gradients[0]), dq});
    pairs.push_back({newest(gradients[1]), dr});
    pairs.push_back({newest(gradients[2]), newest(dk)});
    pairs.push_back({newest(gradients[3]), newest(dv)});
  }
  return worst_error(pairs, case_);
}

}  // namespace parallax::bench
