// The ops parallax::norm_rope and swiglu with their backward ops: row_backends.h for Torch tensors.
// src/nn makes differentiable functions of them for C++, python/parallax for Python.
// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "row_backends.h"
#include "torch/execution.h"
#include "torch/tensor_view.h"

namespace parallax::torch_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor new_like(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }

Tensor norm_rope_kernel(const Tensor& x, const OptionalTensor& gain, const OptionalTensor& cos,
                        const OptionalTensor& sin, double eps, ScalarType dtype) {
  const Tensor y = torch::stable::new_empty(x, x.sizes(), dtype);
  core::NormRopeArgs args{.x = const_view(x, "x"),
                          .gain = const_view(gain, "gain"),
                          .cos = const_view(cos, "cos"),
                          .sin = const_view(sin, "sin"),
                          .eps = eps,
                          .y = mutable_view(y, "y")};
  set_execution(x, args);
  norm_rope(args);
  return y;
}

std::tuple<Tensor, Tensor> norm_rope_backward_kernel(const Tensor& dy, const Tensor& x,
                                                     const OptionalTensor& gain,
                                                     const OptionalTensor& cos,
                                                     const OptionalTensor& sin, double eps) {
  const Tensor dx = new_like(x);
  const Tensor d_gain = gain ? new_like(*gain) : torch::stable::new_empty(x, {0});
  core::NormRopeBackwardArgs args{.dy = const_view(dy, "dy"),
                                  .x = const_view(x, "x"),
                                  .gain = const_view(gain, "gain"),
                                  .cos = const_view(cos, "cos"),
                                  .sin = const_view(sin, "sin"),
                                  .eps = eps,
                                  .dx = mutable_view(dx, "dx"),
                                  .d_gain = gain ? mutable_view(d_gain, "d_gain") : TensorView{}};
  const OptionalTensor workspace = set_execution(x, args);
  norm_rope_backward(args);
  return {dx, d_gain};
}

Tensor swiglu_kernel(const Tensor& gate, const Tensor& up) {
  const Tensor y = new_like(gate);
  core::SwigluArgs args{
      .gate = const_view(gate, "gate"), .up = const_view(up, "up"), .y = mutable_view(y, "y")};
  set_execution(gate, args);
  swiglu(args);
  return y;
}

std::tuple<Tensor, Tensor> swiglu_backward_kernel(const Tensor& dy, const Tensor& gate,
                                                  const Tensor& up) {
  const Tensor d_gate = new_like(gate);
  const Tensor d_up = new_like(up);
  core::SwigluBackwardArgs args{.dy = const_view(dy, "dy"),
                                .gate = const_view(gate, "gate"),
                                .up = const_view(up, "up"),
                                .d_gate = mutable_view(d_gate, "d_gate"),
                                .d_up = mutable_view(d_up, "d_up")};
  set_execution(gate, args);
  swiglu_backward(args);
  return {d_gate, d_up};
}

}  // namespace
}  // namespace parallax::torch_ops

// Without a gain d_gain is an empty tensor.
STABLE_TORCH_LIBRARY_FRAGMENT(parallax, library) {
  library.def(
      "norm_rope(Tensor x, Tensor? gain, Tensor? cos, Tensor? sin, float eps, ScalarType dtype) "
      "-> Tensor");
  library.def(
      "norm_rope_backward(Tensor dy, Tensor x, Tensor? gain, Tensor? cos, Tensor? sin, float eps) "
      "-> (Tensor dx, Tensor d_gain)");
  library.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  library.def("swiglu_backward(Tensor dy, Tensor gate, Tensor up) -> (Tensor d_gate, Tensor d_up)");
}

// The same kernels for both devices, as in ops.cc.
#define PLX_REGISTER_KERNELS(dispatch_key)                                                    \
  STABLE_TORCH_LIBRARY_IMPL(parallax, dispatch_key, library) {                                \
    library.impl("norm_rope", TORCH_BOX(&parallax::torch_ops::norm_rope_kernel));             \
    library.impl("norm_rope_backward",                                                        \
                 TORCH_BOX(&parallax::torch_ops::norm_rope_backward_kernel));                 \
    library.impl("swiglu", TORCH_BOX(&parallax::torch_ops::swiglu_kernel));                   \
    library.impl("swiglu_backward", TORCH_BOX(&parallax::torch_ops::swiglu_backward_kernel)); \
  }
PLX_REGISTER_KERNELS(CPU)
PLX_REGISTER_KERNELS(CUDA)
#undef PLX_REGISTER_KERNELS
