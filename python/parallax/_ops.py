# SPDX-License-Identifier: Apache-2.0
"""Loads the op library and adds what its C++ side leaves to Python.

The ops of `torch.ops.parallax` are C++ (src/torch), built on Torch's stable ABI. That ABI has no
fake kernels, autograd or autocast, so those three are registered here. Fake kernels use symbolic
sizes only, so that one compiled graph serves every shape.
"""

from pathlib import Path

import torch
from torch import Tensor

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


def _check_devices(first: Tensor, *others) -> None:
    """A tensor on the meta device brings any call here, so this is where the mixture is refused."""
    for other in others:
        if isinstance(other, Tensor):
            torch._check(
                other.device == first.device,
                lambda device=other.device: (
                    f"tensors on {first.device} and {device}; all tensors must be on one device"
                ),
            )


def _fake_outputs(q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out and out_softmax like q, contiguous; lse and t_mean [B, H, T], or [H, T] packed."""
    torch._check(q.dim() in (3, 4), lambda: f"q: got {q.dim()} dimensions, expected 3 or 4")
    *batch, tokens, heads, _ = q.shape
    stats_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse, t_mean = (q.new_empty((*batch, heads, tokens), dtype=stats_dtype) for _ in range(2))
    return q.new_empty(q.shape), q.new_empty(q.shape), lse, t_mean


@torch.library.register_fake("parallax::attention_forward")
def _(q, r, k, v, cu_seqlens_q, cu_seqlens_k, scale, causal, window, deterministic=False):
    _check_devices(q, r, k, v, cu_seqlens_q, cu_seqlens_k)
    return _fake_outputs(q)


@torch.library.register_fake("parallax::attention_backward")
def _(d_out, q, r, k, v, *saved_tensors_and_options):
    _check_devices(d_out, q, r, k, v, *saved_tensors_and_options)
    return tuple(tensor.new_empty(tensor.shape) for tensor in (q, r, k, v))


@torch.library.register_fake("parallax::decode")
def _(q, *cache_and_options):
    _check_devices(q, *cache_and_options)
    return _fake_outputs(q)


@torch.library.register_fake("parallax::merge_states")
def _(out, out_softmax, lse, t_mean):
    _check_devices(*out, *out_softmax, *lse, *t_mean)
    return _fake_outputs(out[0])


# ---- autograd ---------------------------------------------------------------------------------


def require_tensors(function: str, required: dict, optional: dict | None = None) -> None:
    """TypeError for an argument that is no tensor; `optional` ones may be None."""
    for name, value in {**required, **(optional or {})}.items():
        if not isinstance(value, Tensor) and not (value is None and name not in required):
            given = type(value).__name__
            raise TypeError(f"{function}: {name} is of type {given}; it must be a torch.Tensor")


def unit_innermost_stride(tensor: Tensor) -> Tensor:
    """The tensor itself, or a contiguous copy if its innermost stride is not 1.

    The kernels take every other stride as it is. A gradient that was expanded from a scalar is the
    usual case for the copy.
    """
    if tensor.dim() == 0 or tensor.layout != torch.strided or tensor.stride(-1) == 1:
        return tensor  # what is no input at all is the op's to refuse
    return tensor.clone(memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:
    q, r, k, v, cu_seqlens_q, cu_seqlens_k, scale, causal, window, deterministic = inputs
    _, out_softmax, lse, t_mean = output
    ctx.mark_non_differentiable(out_softmax, lse, t_mean)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, r, k, v, *output, cu_seqlens_q, cu_seqlens_k)
    ctx.options = (scale, causal, window, deterministic)


def _backward(ctx, d_out, *_):
    num_inputs = 10
    if d_out is None:
        return (None,) * num_inputs
    *tensors, cu_seqlens_q, cu_seqlens_k = ctx.saved_tensors
    gradients = _ops.attention_backward(
        unit_innermost_stride(d_out), *tensors, cu_seqlens_q, cu_seqlens_k, *ctx.options
    )
    return (*gradients, *(None,) * (num_inputs - 4))


torch.library.register_autograd(
    "parallax::attention_forward", _backward, setup_context=_setup_context
)


def _refuse_gradients(op: str, reason: str) -> None:
    """A gradient that is asked of `op` is an error, not silently absent."""

    def backward(ctx, *_):
        raise RuntimeError(f"parallax::{op} is not differentiable: {reason}")

    torch.library.register_autograd(f"parallax::{op}", backward)


_refuse_gradients(
    "attention_backward", "double backward (create_graph=True) is not supported by attention"
)
_refuse_gradients("decode", "train with parallax.attention or parallax.varlen_attention")
_refuse_gradients("merge_states", "train with parallax.attention or parallax.varlen_attention")


# ---- autocast ---------------------------------------------------------------------------------
# torch.library.register_autocast casts to one fixed dtype; these follow torch.autocast(dtype=).

_library = torch.library.Library("parallax", "IMPL")


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
