// Activation checkpointing of one layer.
//
// The layer's parameters are inputs of the function beside x, so that their gradients flow through
// the graph as usual (accumulation order, hooks, torch::autograd::grad) instead of being added to
// .grad from inside the backward pass.
// SPDX-License-Identifier: Apache-2.0
#include <ATen/autocast_mode.h>
#include <torch/autograd.h>

#include <utility>

#include "nn/block.h"

namespace parallax::nn {
namespace {

using torch::Tensor;
using torch::autograd::variable_list;

/// Autocast's switch and dtype for one device.
struct AutocastState {
  c10::DeviceType device;
  bool enabled;
  at::ScalarType dtype;

  static AutocastState current(c10::DeviceType device) {
    return {.device = device,
            .enabled = at::autocast::is_autocast_enabled(device),
            .dtype = at::autocast::get_autocast_dtype(device)};
  }
  void apply() const {
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, dtype);
  }
};

/// Applies a state for a scope. Autocast's weight cache is off meanwhile: casts made without grad
/// must not be handed to a computation that needs gradients.
class AutocastScope {
 public:
  explicit AutocastScope(const AutocastState& state)
      : outer_(AutocastState::current(state.device)),
        outer_cache_(at::autocast::is_autocast_cache_enabled()) {
    state.apply();
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~AutocastScope() {
    outer_.apply();
    at::autocast::set_autocast_cache_enabled(outer_cache_);
  }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  AutocastState outer_;
  bool outer_cache_;
};

/// What the backward pass needs besides x; autograd's context holds it as an opaque value.
struct Recompute : torch::CustomClassHolder {
  Recompute(Block layer, RotaryTables tables, std::optional<Tensor> boundaries, AutocastState state)
      : block(std::move(layer)),
        rope(std::move(tables)),
        cu_seqlens(std::move(boundaries)),
        autocast(state) {}

  Tensor forward(const Tensor& x) {
    const AutocastScope scope(autocast);
    return block->forward(x, rope, cu_seqlens);
  }

  Block block;
  RotaryTables rope;
  std::optional<Tensor> cu_seqlens;
  AutocastState autocast;
};

class CheckpointFunction : public torch::autograd::Function<CheckpointFunction> {
 public:
  /// inputs: x, then the parameters of the layer.
  static Tensor forward(torch::autograd::AutogradContext* ctx, at::TensorList inputs,
                        const c10::intrusive_ptr<Recompute>& recompute) {
    ctx->save_for_backward({inputs[0]});
    ctx->saved_data["recompute"] = c10::IValue::make_capsule(recompute);
    return recompute->forward(inputs[0]);
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, variable_list d_outputs) {
    const auto recompute =
        c10::static_intrusive_pointer_cast<Recompute>(ctx->saved_data["recompute"].toCapsule());
    const Tensor x = ctx->get_saved_variables()[0].detach().requires_grad_();
    variable_list inputs = {x};
    for (const Tensor& parameter : recompute->block->parameters())
      if (parameter.requires_grad()) inputs.push_back(parameter);

    Tensor out;
    {
      const torch::AutoGradMode with_grad(true);
      out = recompute->forward(x);
    }
    // A parameter that the layer does not use gets an undefined gradient, as it would without
    // checkpointing.
    variable_list gradients = torch::autograd::grad({out}, inputs, {d_outputs[0]},
                                                    /*retain_graph=*/std::nullopt,
                                                    /*create_graph=*/false, /*allow_unused=*/true);
    gradients.emplace_back();  // the Recompute argument
    return gradients;
  }
};

}  // namespace

Tensor checkpointed(const Block& block, const Tensor& x, const RotaryTables& rope,
                    const std::optional<Tensor>& cu_seqlens) {
  auto recompute = c10::make_intrusive<Recompute>(block, rope, cu_seqlens,
                                                  AutocastState::current(x.device().type()));
  std::vector<Tensor> inputs = {x};
  for (const Tensor& parameter : block->parameters())
    if (parameter.requires_grad()) inputs.push_back(parameter);
  return CheckpointFunction::apply(at::TensorList(inputs), recompute);
}

}  // namespace parallax::nn
