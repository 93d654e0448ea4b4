# SPDX-License-Identifier: Apache-2.0
"""_fake.py for norm_rope and swiglu: the checks of src/core/row_ops.cc, same order, same words."""

import math

import torch

from parallax._fake import (
    _check_devices,
    _check_dtype,
    _check_innermost_stride,
    _check_present,
    _check_shape,
    _check_views,
    _dtype_text,
    _text,
)

VALUES = (torch.float32, torch.bfloat16, torch.float16)


def _check_values(name, x):
    _check_present(name, x)
    torch._check(
        x.dtype in VALUES,
        lambda: f"{name} is {_dtype_text(x.dtype)}; it must be float32, bfloat16 or float16",
    )
    _check_innermost_stride(name, x)


def _check_first(name, x):
    _check_values(name, x)
    torch._check(
        x.shape[-1] >= 1,
        lambda: f"{name} has shape {_text(x.shape)}; its last dimension must not be empty",
    )


def _check_alike(name, x, first_name, first):
    _check_values(name, x)
    _check_shape(name, x, first.shape, f"the shape of {first_name}")


def _check_tables(x, cos, sin):
    def message():
        return (
            f"x has shape {_text(x.shape)}; to be rotated it must be [.., N, H, D] with an even D"
        )

    torch._check(x.dim() >= 3, message)
    torch._check(x.shape[-1] % 2 == 0, message)
    for name, table in (("cos", cos), ("sin", sin)):
        _check_present(name, table)
        _check_dtype(name, table, torch.float32, "tables are")
        _check_shape(name, table, (x.shape[-3], x.shape[-1] // 2), "[N, D / 2] of x")
        _check_innermost_stride(name, table)


def _check_norm_rope(x, gain, cos, sin, eps):
    _check_first("x", x)
    rotates = cos is not None or sin is not None
    torch._check(
        gain is not None or rotates,
        lambda: "norm_rope: got neither a gain nor cos and sin, so there is nothing to compute",
    )
    if isinstance(eps, int | float):  # not a symbolic one
        torch._check(
            eps >= 0 and math.isfinite(eps),
            lambda: f"norm_rope: eps is {eps:g}; it must be 0 or positive",
        )
    if gain is not None:
        _check_values("gain", gain)
        _check_shape("gain", gain, (x.shape[-1],), "[D] of x")
    if rotates:
        _check_tables(x, cos, sin)


def norm_rope(x, gain, cos, sin, eps, dtype):
    y = x.new_empty(x.shape, dtype=dtype)
    inputs = {"x": x, "gain": gain, "cos": cos, "sin": sin}
    _check_views({**inputs, "y": y}, {})
    _check_norm_rope(x, gain, cos, sin, eps)
    _check_values("y", y)
    _check_devices(inputs)
    return y


def norm_rope_backward(dy, x, gain, cos, sin, eps):
    inputs = {"x": x, "gain": gain, "cos": cos, "sin": sin}
    _check_views({"dy": dy, **inputs}, {})
    _check_norm_rope(x, gain, cos, sin, eps)
    _check_alike("dy", dy, "x", x)
    _check_devices({**inputs, "dy": dy})
    return x.new_empty(x.shape), x.new_empty(0) if gain is None else gain.new_empty(gain.shape)


def swiglu(gate, up):
    inputs = {"gate": gate, "up": up}
    _check_views(inputs, {})
    _check_first("gate", gate)
    _check_alike("up", up, "gate", gate)
    _check_devices(inputs)
    return gate.new_empty(gate.shape)


def swiglu_backward(dy, gate, up):
    inputs = {"gate": gate, "up": up, "dy": dy}
    _check_views({"dy": dy, "gate": gate, "up": up}, {})
    _check_first("gate", gate)
    for name in ("up", "dy"):
        _check_alike(name, inputs[name], "gate", gate)
    _check_devices(inputs)
    return gate.new_empty(gate.shape), up.new_empty(up.shape)
