# SPDX-License-Identifier: Apache-2.0
"""norm_rope and swiglu written plainly, and what their tests on the CPU and on CUDA share."""

import torch

# Largest error over the largest element: a few roundings, more where gradients are differences.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}

# shape of x, with a gain, with tables
NORM_ROPE_CASES = {
    "norm": ((5, 3, 100), True, False),
    "vector": ((37,), True, False),
    "wide": ((70, 2048), True, False),
    "longer than a block holds": ((3, 9001), True, False),
    "many rows": ((3, 700, 24), True, False),
    "rotation": ((2, 9, 3, 64), False, True),
    "both": ((2, 9, 3, 128), True, True),
    "both, odd half": ((2, 9, 3, 6), True, True),
    "both, one sequence": ((300, 2, 64), True, True),
    "both, long": ((2, 3, 1, 5000), True, True),
}


def make_norm_rope(case, dtype, device="cpu"):
    """The arguments of norm_rope by name, and dy."""
    shape, norm, rotate = NORM_ROPE_CASES[case]
    inputs = {"x": torch.randn(shape).to(dtype)}
    if norm:
        inputs["gain"] = torch.randn(shape[-1]).to(dtype)
    if rotate:
        angles = 3 * torch.randn(shape[-3], shape[-1] // 2)
        inputs |= {"cos": angles.cos(), "sin": angles.sin()}
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    return inputs, torch.randn(shape).to(device, dtype)


def naive_norm_rope(x, gain=None, cos=None, sin=None, eps=1e-6):
    y = x
    if gain is not None:
        y = gain * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    if cos is not None:
        low, high = y.chunk(2, -1)
        cos, sin = cos[:, None], sin[:, None]
        y = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
    return y


def naive_swiglu(gate, up):
    return gate * torch.sigmoid(gate) * up


def with_gradients(function, inputs, dy, dtype=None):
    """The result and the gradients of all inputs but tables; in another dtype if one is given."""
    inputs = {name: x.to(dtype or x.dtype) for name, x in inputs.items()}
    leaves = {n: x.detach().requires_grad_() for n, x in inputs.items() if n not in ("cos", "sin")}
    y = function(**{**inputs, **leaves})
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))]


def assert_close(actual, expected, dtype):
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == dtype
        error = (a.double().cpu() - e.double().cpu()).abs().max().item()
        allowed = TOLERANCE[dtype] * e.abs().max().item()
        assert error <= allowed, f"result {index}: {error:.2e} of {allowed:.2e}"
