# SPDX-License-Identifier: Apache-2.0
"""Loads the op library and adds what its C++ side leaves to Python.

The ops of `torch.ops.parallax` are C++ (src/torch), built on Torch's stable ABI. That ABI has no
fake kernels (_fake.py), autograd or autocast, so those three are registered here.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from parallax import _fake, _fake_row_ops

LIBRARY = Path(__file__).parent / "_lib" / "libparallax_torch.so"


def _load() -> None:
    if not LIBRARY.is_file():
        raise ImportError(
            f"parallax: the op library {LIBRARY} is not built. In the repository, run "
            "`make build`, or `cmake --preset release && ninja -C build/release plx_torch`."
        )
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        raise ImportError(
            f"parallax: {LIBRARY} does not load into torch {torch.__version__} (it needs 2.11 or "
            f"later): {error}"
        ) from error


_load()
_ops = torch.ops.parallax


# ---- fake kernels -----------------------------------------------------------------------------

for _module, _names in (
    (_fake, ("attention_forward", "attention_backward", "decode", "merge_states")),
    (_fake_row_ops, ("norm_rope", "norm_rope_backward", "swiglu", "swiglu_backward")),
):
    for _name in _names:
        torch.library.register_fake(f"parallax::{_name}", getattr(_module, _name))


# ---- autograd ---------------------------------------------------------------------------------


def require_tensors(function: str, required: dict, optional: dict | None = None) -> None:
    """TypeError for an argument that is no tensor; `optional` ones may be None.

    RuntimeError for one that carries a forward-mode tangent.
    """
    for name, value in {**required, **(optional or {})}.items():
        if not isinstance(value, Tensor) and not (value is None and name not in required):
            given = type(value).__name__
            raise TypeError(f"{function}: {name} is of type {given}; it must be a torch.Tensor")
    _require_no_tangents(function, required)


def require_number(function: str, name: str, value, allowed: str = "a float or None") -> None:
    """TypeError for a tensor, which would be read as a number and lose its gradient."""
    if isinstance(value, Tensor):
        raise TypeError(
            f"{function}: {name} is of type Tensor, and no gradient flows through it; it must be "
            f"{allowed} ({name}.item())"
        )


def _require_no_tangents(function: str, tensors: dict) -> None:
    """Forward-mode derivatives are an error: the ops have none, and dropping them gives zeros."""
    if forward_ad._current_level < 0:
        return
    for name, tensor in tensors.items():
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                f"{function}: {name} carries a forward-mode tangent (torch.func.jvp, jacfwd, "
                "hessian); only reverse mode is supported"
            )


def unit_innermost_stride(tensor: Tensor) -> Tensor:
    """The tensor itself, or a contiguous copy if its innermost stride is not 1.

    The kernels take every other stride as it is. A gradient that was expanded from a scalar is the
    usual case for the copy.
    """
    if tensor.dim() == 0 or tensor.layout != torch.strided or tensor.stride(-1) == 1:
        return tensor  # what is no input at all is the op's to refuse
    return tensor.clone(memory_format=torch.contiguous_format)


def needs_gradient(tensors) -> bool:
    """Whether autograd may record a call with these inputs, so that it must return statistics.

    Under a transform of torch.func the answer is yes: a tensor inside vmap does not tell that the
    one around it requires a gradient.
    """
    return torch.is_grad_enabled() and (
        any(tensor.requires_grad for tensor in tensors)
        or torch._C._are_functorch_transforms_active()
    )


# A gradient that cannot be had is an error, not silently absent. The error is an op of its own,
# because torch.compile runs every backward function once, to trace it: an exception there would
# refuse the forward pass too.
_library = torch.library.Library("parallax", "FRAGMENT")
_library.define(
    "refuse_gradient(Tensor gradient, SymInt[] sizes, ScalarType dtype, str message) -> Tensor"
)


@torch.library.impl(_library, "refuse_gradient", "CompositeExplicitAutograd")
def _(gradient, sizes, dtype, message):
    raise RuntimeError(message)


@torch.library.register_fake("parallax::refuse_gradient", lib=_library)
def _(gradient, sizes, dtype, message):
    return gradient.new_empty(sizes, dtype=dtype)


def _keep_shapes(ctx, inputs) -> None:
    # Shapes, not tensors: a cache that is written to before the backward pass is no error.
    ctx.inputs = torch.utils._pytree.tree_map(
        lambda x: (x.shape, x.dtype) if isinstance(x, Tensor) else None, inputs
    )


def _refused(ctx, gradient, message: str) -> tuple:
    def refused(x):
        return None if x is None else _ops.refuse_gradient(gradient, *x, message)

    return tuple(
        [refused(x) for x in given] if isinstance(given, list) else refused(given)
        for given in ctx.inputs
    )


def _refuse_gradients(op: str, reason: str) -> None:
    message = f"parallax::{op} is not differentiable: {reason}"
    torch.library.register_autograd(
        f"parallax::{op}",
        lambda ctx, gradient, *_: _refused(ctx, gradient, message),
        setup_context=lambda ctx, inputs, output: _keep_shapes(ctx, inputs),
    )


def _setup_context(ctx, inputs, output) -> None:
    q, r, k, v, cu_seqlens_q, cu_seqlens_k, *ctx.options, ctx.return_stats = inputs
    _, out_softmax, lse, t_mean = output
    ctx.mark_non_differentiable(out_softmax, lse, t_mean)
    ctx.set_materialize_grads(False)
    if ctx.return_stats:
        ctx.save_for_backward(q, r, k, v, *output, cu_seqlens_q, cu_seqlens_k)
    else:
        _keep_shapes(ctx, inputs)


def _backward(ctx, d_out, *_):
    num_inputs = 11
    if d_out is None:
        return (None,) * num_inputs
    if not ctx.return_stats:
        message = (
            "parallax::attention_forward is not differentiable with return_stats=False: the "
            "gradient needs the statistics"
        )
        return _refused(ctx, d_out, message)
    *tensors, cu_seqlens_q, cu_seqlens_k = ctx.saved_tensors
    gradients = _ops.attention_backward(
        unit_innermost_stride(d_out), *tensors, cu_seqlens_q, cu_seqlens_k, *ctx.options
    )
    return (*gradients, *(None,) * (num_inputs - 4))


torch.library.register_autograd(
    "parallax::attention_forward", _backward, setup_context=_setup_context
)


_refuse_gradients(
    "attention_backward", "double backward (create_graph=True) is not supported by attention"
)
_refuse_gradients("decode", "train with parallax.attention or parallax.varlen_attention")
_refuse_gradients("merge_states", "train with parallax.attention or parallax.varlen_attention")


def _norm_rope_context(ctx, inputs, output) -> None:
    *tensors, ctx.eps, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _norm_rope_backward(ctx, dy):
    if dy is None:
        return (None,) * 6
    x, gain, *tables = ctx.saved_tensors
    dx, d_gain = _ops.norm_rope_backward(unit_innermost_stride(dy), x, gain, *tables, ctx.eps)
    message = "parallax::norm_rope is not differentiable in cos and sin"
    refused = [
        _ops.refuse_gradient(dy, table.shape, table.dtype, message) if is_needed else None
        for table, is_needed in zip(tables, ctx.needs_input_grad[2:4], strict=True)
    ]
    return (dx, None if gain is None else d_gain, *refused, None, None)


def _swiglu_context(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _swiglu_backward(ctx, dy):
    if dy is None:
        return None, None
    return _ops.swiglu_backward(unit_innermost_stride(dy), *ctx.saved_tensors)


torch.library.register_autograd(
    "parallax::norm_rope", _norm_rope_backward, setup_context=_norm_rope_context
)
torch.library.register_autograd("parallax::swiglu", _swiglu_backward, setup_context=_swiglu_context)
for _name in ("norm_rope", "swiglu"):
    _refuse_gradients(
        f"{_name}_backward", f"double backward (create_graph=True) is not supported by {_name}"
    )


# ---- autocast ---------------------------------------------------------------------------------
# torch.library.register_autocast casts to one fixed dtype; these follow torch.autocast(dtype=).


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    is_eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if is_eligible else tensor


def _register_autocast(device_type: str, key: str) -> None:
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def attention_forward(q, r, k, v, *rest):
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(keyset):
            return _ops.attention_forward(*(_cast(x, dtype) for x in (q, r, k, v)), *rest)

    def decode(q, r, k_cache, v_cache, *rest):
        # To the cache's dtype: casting the cache would copy all of it for every token.
        q, r = (_cast(x, k_cache.dtype) for x in (q, r))
        with torch._C._ExcludeDispatchKeyGuard(keyset):
            return _ops.decode(q, r, k_cache, v_cache, *rest)

    _library.impl("attention_forward", attention_forward, key)
    _library.impl("decode", decode, key)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
