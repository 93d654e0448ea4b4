// Calls parallax::norm_rope and parallax::swiglu through Torch's dispatcher and declares their
// derivatives.
// SPDX-License-Identifier: Apache-2.0
#include "nn/row_ops.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <tuple>

#include "nn/find_op.h"
#include "row_backends.h"

namespace parallax::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using TwoTensors = std::tuple<Tensor, Tensor>;

using NormRopeOp = Tensor(const Tensor& x, const OptionalTensor& gain, const OptionalTensor& cos,
                          const OptionalTensor& sin, double eps, torch::ScalarType dtype);
using NormRopeBackwardOp = TwoTensors(const Tensor& dy, const Tensor& x, const OptionalTensor& gain,
                                      const OptionalTensor& cos, const OptionalTensor& sin,
                                      double eps);
using SwigluOp = Tensor(const Tensor& gate, const Tensor& up);
using SwigluBackwardOp = TwoTensors(const Tensor& dy, const Tensor& gate, const Tensor& up);

OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

/// The kernels take any strides but in the last dimension, where an expanded gradient has 0.
Tensor readable(const Tensor& x) { return x.stride(-1) == 1 ? x : x.contiguous(); }

class NormRopeFunction : public torch::autograd::Function<NormRopeFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x_in, const OptionalTensor& gain,
                        const NormRope& options) {
    static const auto op = find_op<NormRopeOp>("norm_rope");
    at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor x = readable(x_in);
    const RotaryTables tables = options.rope ? *options.rope : RotaryTables{};
    ctx->save_for_backward({x, options.gain, tables.cos, tables.sin});
    ctx->saved_data["eps"] = options.eps;
    return op.call(x, gain, if_defined(tables.cos), if_defined(tables.sin), options.eps,
                   options.dtype);
  }

  static variable_list backward(AutogradContext* ctx, variable_list d_outputs) {
    static const auto op = find_op<NormRopeBackwardOp>("norm_rope_backward");
    const auto saved = ctx->get_saved_variables();
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [dx, d_gain] =
        op.call(readable(d_outputs[0]), saved[0], if_defined(saved[1]), if_defined(saved[2]),
                if_defined(saved[3]), ctx->saved_data["eps"].toDouble());
    return {dx, saved[1].defined() ? d_gain : Tensor(), Tensor()};
  }
};

class SwigluFunction : public torch::autograd::Function<SwigluFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& gate_in, const Tensor& up_in) {
    static const auto op = find_op<SwigluOp>("swiglu");
    at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor gate = readable(gate_in), up = readable(up_in);
    ctx->save_for_backward({gate, up});
    return op.call(gate, up);
  }

  static variable_list backward(AutogradContext* ctx, variable_list d_outputs) {
    static const auto op = find_op<SwigluBackwardOp>("swiglu_backward");
    const auto saved = ctx->get_saved_variables();
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [d_gate, d_up] = op.call(readable(d_outputs[0]), saved[0], saved[1]);
    return {d_gate, d_up};
  }
};

bool has_row_kernels(const Tensor& x) {
  if (x.scalar_type() == torch::kFloat64) return false;
  if (x.device().is_cpu()) return true;
  return x.device().is_cuda() && supports_row_ops({DeviceType::kCuda, x.device().index()}).ok;
}

torch::ScalarType wide_dtype(const Tensor& x) {
  return at::promote_types(x.scalar_type(), torch::kFloat32);
}

Tensor composed_norm_rope(const Tensor& x, const NormRope& options) {
  const auto wide = wide_dtype(x);
  Tensor y = x.to(wide);
  if (options.gain.defined())
    y = at::rms_norm(y, options.gain.sizes(), options.gain.to(wide), options.eps);
  if (options.rope) {
    const Tensor cos = options.rope->cos.to(wide).unsqueeze(-2);  // [N, 1, D / 2]
    const Tensor sin = options.rope->sin.to(wide).unsqueeze(-2);
    const auto halves = y.chunk(2, -1);
    y = torch::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
  }
  return y.to(options.dtype);
}

}  // namespace

Tensor norm_rope(const Tensor& x, const NormRope& options) {
  const bool does_nothing = !options.gain.defined() && options.rope == nullptr;
  if (does_nothing || !has_row_kernels(x)) return composed_norm_rope(x, options);
  return NormRopeFunction::apply(x, if_defined(options.gain), options);
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  if (has_row_kernels(gate)) return SwigluFunction::apply(gate, up);
  const auto wide = wide_dtype(gate);
  return (torch::silu(gate.to(wide)) * up.to(wide)).to(gate.scalar_type());
}

}  // namespace parallax::nn
