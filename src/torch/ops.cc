// The ops parallax::attention_forward, attention_backward, decode and merge_states.
//
// Each one turns Torch tensors into views, allocates the outputs and calls the public C++ function
// of the same name, which checks every argument and chooses the backend. What Torch's stable ABI
// does not cover (fake kernels, autograd, autocast) is python/parallax/_ops.py for Python and
// src/nn for C++.
// SPDX-License-Identifier: Apache-2.0
#include "torch/ops.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "parallax/attention.h"
#include "parallax/error.h"
#include "torch/execution.h"
#include "torch/parallel.h"
#include "torch/tensor_view.h"

const char* const parallax_torch_ops = "parallax";

namespace parallax::torch_ops {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Tensor new_contiguous(const Tensor& tensor) {
  return torch::stable::new_empty(tensor, tensor.sizes());
}

enum class Stats { kReturn, kLeaveOut };

// The four outputs of a call with queries q: [B, T, H, D] and [B, H, T], or packed [T, H, D] and
// [H, T], all contiguous. The statistics are float32, float64 for float64 queries. Left out,
// out_softmax, lse and t_mean are [0] of the same dtypes, since an op returns no undefined tensor.
struct OutputTensors {
  Tensor out, out_softmax, lse, t_mean;
  Stats stats;

  /// `name` is that of `q` in messages.
  OutputTensors(const Tensor& q, std::string_view name, Stats wanted = Stats::kReturn)
      : out(new_contiguous(q)), stats(wanted) {
    PLX_CHECK(q.dim() == 3 || q.dim() == 4, name, " has ", q.dim(),
              " dimensions; it must be [B, Tq, Hq, D], or packed [total_q, Hq, D]");
    std::vector<int64_t> sizes(q.sizes().begin(), q.sizes().end());
    std::vector<int64_t> row_sizes(sizes.begin(), sizes.end() - 1);
    std::swap(row_sizes[row_sizes.size() - 2], row_sizes[row_sizes.size() - 1]);
    if (stats == Stats::kLeaveOut) sizes = row_sizes = {0};
    const bool is_double = q.scalar_type() == ScalarType::Double;
    const ScalarType row_type = is_double ? ScalarType::Double : ScalarType::Float;
    out_softmax = torch::stable::new_empty(q, sizes);
    lse = torch::stable::new_empty(q, row_sizes, row_type);
    t_mean = torch::stable::new_empty(q, row_sizes, row_type);
  }

  template <typename Args>
  void set_views(Args& args) const {
    args.out = mutable_view(out, "out");
    if (stats == Stats::kLeaveOut) return;
    args.out_softmax = mutable_view(out_softmax, "out_softmax");
    args.lse = mutable_view(lse, "lse");
    args.t_mean = mutable_view(t_mean, "t_mean");
  }

  Outputs tuple() const { return {out, out_softmax, lse, t_mean}; }
};

AttentionOptions options_of(std::optional<double> scale, Mask mask, std::optional<int64_t> window) {
  return {.softmax_scale = scale, .mask = mask, .window = window};
}

Mask mask_of(bool causal) { return causal ? Mask::kCausal : Mask::kFull; }

// The argument lists below are the schemas', whatever their length.

Outputs forward_kernel(const Tensor& q, const Tensor& r, const Tensor& k, const Tensor& v,
                       const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                       std::optional<double> scale, bool causal, std::optional<int64_t> window,
                       bool /*deterministic: the forward pass always is*/, bool return_stats) {
  const OutputTensors outputs(q, "q", return_stats ? Stats::kReturn : Stats::kLeaveOut);
  ForwardArgs args{.q = const_view(q, "q"),
                   .r = const_view(r, "r"),
                   .k = const_view(k, "k"),
                   .v = const_view(v, "v"),
                   .cu_seqlens_q = index_view(cu_seqlens_q, "cu_seqlens_q"),
                   .cu_seqlens_k = index_view(cu_seqlens_k, "cu_seqlens_k"),
                   .options = options_of(scale, mask_of(causal), window)};
  outputs.set_views(args);
  const OptionalTensor workspace = set_execution(q, args);
  attention_forward(args);
  return outputs.tuple();
}

Outputs backward_kernel(const Tensor& d_out, const Tensor& q, const Tensor& r, const Tensor& k,
                        const Tensor& v, const Tensor& out, const Tensor& out_softmax,
                        const Tensor& lse, const Tensor& t_mean, const OptionalTensor& cu_seqlens_q,
                        const OptionalTensor& cu_seqlens_k, std::optional<double> scale,
                        bool causal, std::optional<int64_t> window, bool deterministic) {
  const Tensor dq = new_contiguous(q);
  const Tensor dr = new_contiguous(r);
  const Tensor dk = new_contiguous(k);
  const Tensor dv = new_contiguous(v);
  BackwardArgs args{.d_out = const_view(d_out, "d_out"),
                    .q = const_view(q, "q"),
                    .r = const_view(r, "r"),
                    .k = const_view(k, "k"),
                    .v = const_view(v, "v"),
                    .out = const_view(out, "out"),
                    .out_softmax = const_view(out_softmax, "out_softmax"),
                    .lse = const_view(lse, "lse"),
                    .t_mean = const_view(t_mean, "t_mean"),
                    .cu_seqlens_q = index_view(cu_seqlens_q, "cu_seqlens_q"),
                    .cu_seqlens_k = index_view(cu_seqlens_k, "cu_seqlens_k"),
                    .options = options_of(scale, mask_of(causal), window),
                    .deterministic = deterministic,
                    .dq = mutable_view(dq, "dq"),
                    .dr = mutable_view(dr, "dr"),
                    .dk = mutable_view(dk, "dk"),
                    .dv = mutable_view(dv, "dv")};
  const OptionalTensor workspace = set_execution(q, args);
  attention_backward(args);
  return {dq, dr, dk, dv};
}

Outputs decode_kernel(const Tensor& q, const Tensor& r, const Tensor& k_cache,
                      const Tensor& v_cache, const OptionalTensor& cache_starts,
                      const OptionalTensor& cache_seqlens, const OptionalTensor& cu_seqlens_q,
                      const OptionalTensor& page_table, const OptionalTensor& k_scale,
                      const OptionalTensor& v_scale, std::optional<double> scale,
                      std::optional<int64_t> window, bool batch_invariant) {
  const OutputTensors outputs(q, "q");
  DecodeArgs args{.q = const_view(q, "q"),
                  .r = const_view(r, "r"),
                  .k_cache = const_view(k_cache, "k_cache"),
                  .v_cache = const_view(v_cache, "v_cache"),
                  .cache_starts = index_view(cache_starts, "cache_starts"),
                  .cache_seqlens = index_view(cache_seqlens, "cache_seqlens"),
                  .cu_seqlens_q = index_view(cu_seqlens_q, "cu_seqlens_q"),
                  .page_table = index_view(page_table, "page_table"),
                  .k_scale = const_view(k_scale, "k_scale"),
                  .v_scale = const_view(v_scale, "v_scale"),
                  .options = options_of(scale, Mask::kCausal, window),
                  .batch_invariant = batch_invariant};
  outputs.set_views(args);
  const OptionalTensor workspace = set_execution(q, args);
  decode(args);
  return outputs.tuple();
}

Outputs merge_states_kernel(const std::vector<Tensor>& out, const std::vector<Tensor>& out_softmax,
                            const std::vector<Tensor>& lse, const std::vector<Tensor>& t_mean) {
  const size_t num_partials = out.size();
  PLX_CHECK(num_partials >= 1, "merge_states: got no partial results, at least one is needed");
  PLX_CHECK(out_softmax.size() == num_partials && lse.size() == num_partials &&
                t_mean.size() == num_partials,
            "merge_states: got ", num_partials, " out, ", out_softmax.size(), " out_softmax, ",
            lse.size(), " lse and ", t_mean.size(), " t_mean (as many of each are needed)");
  std::vector<PartialState> partials;
  for (size_t idx = 0; idx < num_partials; ++idx) {
    const std::string prefix = "partials[" + std::to_string(idx) + "].";
    partials.push_back({.out = const_view(out[idx], prefix + "out"),
                        .out_softmax = const_view(out_softmax[idx], prefix + "out_softmax"),
                        .lse = const_view(lse[idx], prefix + "lse"),
                        .t_mean = const_view(t_mean[idx], prefix + "t_mean")});
  }
  const OutputTensors outputs(out[0], "partials[0].out");
  MergeArgs args{.partials = partials};
  outputs.set_views(args);
  set_execution(out[0], args);
  merge_states(args);
  return outputs.tuple();
}

}  // namespace
}  // namespace parallax::torch_ops

// `deterministic` of attention_forward is for its backward op, which autograd calls. Without
// return_stats (inference) out has the same bits, out_softmax, lse and t_mean are empty, [0], and
// attention_backward refuses them.
STABLE_TORCH_LIBRARY(parallax, library) {
  library.def(
      "attention_forward(Tensor q, Tensor r, Tensor k, Tensor v, Tensor? cu_seqlens_q, "
      "Tensor? cu_seqlens_k, float? scale, bool causal, int? window, "
      "bool deterministic=False, bool return_stats=True) "
      "-> (Tensor out, Tensor out_softmax, Tensor lse, Tensor t_mean)");
  library.def(
      "attention_backward(Tensor d_out, Tensor q, Tensor r, Tensor k, Tensor v, Tensor out, "
      "Tensor out_softmax, Tensor lse, Tensor t_mean, Tensor? cu_seqlens_q, "
      "Tensor? cu_seqlens_k, float? scale, bool causal, int? window, bool deterministic) "
      "-> (Tensor dq, Tensor dr, Tensor dk, Tensor dv)");
  library.def(
      "decode(Tensor q, Tensor r, Tensor k_cache, Tensor v_cache, Tensor? cache_starts, "
      "Tensor? cache_seqlens, Tensor? cu_seqlens_q, Tensor? page_table, Tensor? k_scale, "
      "Tensor? v_scale, float? scale, int? window, bool batch_invariant) "
      "-> (Tensor out, Tensor out_softmax, Tensor lse, Tensor t_mean)");
  library.def(
      "merge_states(Tensor[] out, Tensor[] out_softmax, Tensor[] lse, Tensor[] t_mean) "
      "-> (Tensor out, Tensor out_softmax, Tensor lse, Tensor t_mean)");
  parallax::torch_ops::use_torch_threads();
}

// The same kernels for both devices: whether a device has a backend is the library's answer to
// give.
#define PLX_REGISTER_KERNELS(dispatch_key)                                                \
  STABLE_TORCH_LIBRARY_IMPL(parallax, dispatch_key, library) {                            \
    library.impl("attention_forward", TORCH_BOX(&parallax::torch_ops::forward_kernel));   \
    library.impl("attention_backward", TORCH_BOX(&parallax::torch_ops::backward_kernel)); \
    library.impl("decode", TORCH_BOX(&parallax::torch_ops::decode_kernel));               \
    library.impl("merge_states", TORCH_BOX(&parallax::torch_ops::merge_states_kernel));   \
  }
PLX_REGISTER_KERNELS(CPU)
PLX_REGISTER_KERNELS(CUDA)
#undef PLX_REGISTER_KERNELS
