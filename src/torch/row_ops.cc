// The ops parallax::norm_rope and swiglu with their backward ops: cpu/row_ops.h for Torch tensors
// on the CPU. src/nn makes differentiable functions of them; other devices and float64 take Torch's
// own ops there.
// SPDX-License-Identifier: Apache-2.0
#include "cpu/row_ops.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "cpu/backend.h"
#include "torch/tensor_view.h"

namespace parallax::torch_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

const cpu::Kernels& best_kernels() { return *cpu::instruction_set().floats; }

Tensor new_like(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }

Tensor norm_rope_kernel(const Tensor& x, const OptionalTensor& gain, const OptionalTensor& cos,
                        const OptionalTensor& sin, double eps, ScalarType dtype) {
  const Tensor y = torch::stable::new_empty(x, x.sizes(), dtype);
  cpu::norm_rope(best_kernels(), {.x = const_view(x, "x"),
                                  .gain = const_view(gain, "gain"),
                                  .cos = const_view(cos, "cos"),
                                  .sin = const_view(sin, "sin"),
                                  .eps = eps,
                                  .y = mutable_view(y, "y")});
  return y;
}

std::tuple<Tensor, Tensor> norm_rope_backward_kernel(const Tensor& dy, const Tensor& x,
                                                     const OptionalTensor& gain,
                                                     const OptionalTensor& cos,
                                                     const OptionalTensor& sin, double eps) {
  const Tensor dx = new_like(x);
  const Tensor d_gain = gain ? new_like(*gain) : torch::stable::new_empty(x, {0});
  cpu::norm_rope_backward(best_kernels(),
                          {.dy = const_view(dy, "dy"),
                           .x = const_view(x, "x"),
                           .gain = const_view(gain, "gain"),
                           .cos = const_view(cos, "cos"),
                           .sin = const_view(sin, "sin"),
                           .eps = eps,
                           .dx = mutable_view(dx, "dx"),
                           .d_gain = gain ? mutable_view(d_gain, "d_gain") : TensorView{}});
  return {dx, d_gain};
}

Tensor swiglu_kernel(const Tensor& gate, const Tensor& up) {
  const Tensor y = new_like(gate);
  cpu::swiglu(
      best_kernels(),
      {.gate = const_view(gate, "gate"), .up = const_view(up, "up"), .y = mutable_view(y, "y")});
  return y;
}

std::tuple<Tensor, Tensor> swiglu_backward_kernel(const Tensor& dy, const Tensor& gate,
                                                  const Tensor& up) {
  const Tensor d_gate = new_like(gate);
  const Tensor d_up = new_like(up);
  cpu::swiglu_backward(best_kernels(), {.dy = const_view(dy, "dy"),
                                        .gate = const_view(gate, "gate"),
                                        .up = const_view(up, "up"),
                                        .d_gate = mutable_view(d_gate, "d_gate"),
                                        .d_up = mutable_view(d_up, "d_up")});
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

STABLE_TORCH_LIBRARY_IMPL(parallax, CPU, library) {
  library.impl("norm_rope", TORCH_BOX(&parallax::torch_ops::norm_rope_kernel));
  library.impl("norm_rope_backward", TORCH_BOX(&parallax::torch_ops::norm_rope_backward_kernel));
  library.impl("swiglu", TORCH_BOX(&parallax::torch_ops::swiglu_kernel));
  library.impl("swiglu_backward", TORCH_BOX(&parallax::torch_ops::swiglu_backward_kernel));
}
