# SPDX-License-Identifier: Apache-2.0
"""parallax.norm_rope and parallax.swiglu on the CPU: values, gradients, torch.compile, refusals."""

import parallax
import pytest
import torch
from row_ops_support import (
    NORM_ROPE_CASES,
    TOLERANCE,
    assert_close,
    make_norm_rope,
    naive_norm_rope,
    naive_swiglu,
    with_gradients,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("poisoned_memory", "seed")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", NORM_ROPE_CASES)
def test_norm_rope_equals_the_formula_in_float64(case, dtype):
    inputs, dy = make_norm_rope(case, dtype)
    actual = with_gradients(parallax.norm_rope, inputs, dy)
    assert_close(actual, with_gradients(naive_norm_rope, inputs, dy, torch.float64), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 130), (2, 3, 4, 24)], ids=str)
def test_swiglu_equals_the_formula_in_float64(shape, dtype):
    inputs = {"gate": 3 * torch.randn(shape).to(dtype), "up": torch.randn(shape).to(dtype)}
    dy = torch.randn(shape).to(dtype)
    actual = with_gradients(parallax.swiglu, inputs, dy)
    assert_close(actual, with_gradients(naive_swiglu, inputs, dy, torch.float64), dtype)


def test_finite_differences():
    """Float32 values, so steps of 1e-2 and an error of their square."""
    inputs, dy = make_norm_rope("both", torch.float32)
    tables = {"cos": inputs["cos"], "sin": inputs["sin"]}
    functions = {
        "norm_rope": (lambda x, gain: parallax.norm_rope(x, gain, **tables), ("x", "gain")),
        "swiglu": (parallax.swiglu, ("gate", "up")),
    }
    inputs |= {"gate": torch.randn_like(dy), "up": torch.randn_like(dy)}
    for function, names in functions.values():
        leaves = [inputs[name].clone().requires_grad_() for name in names]
        gradients = torch.autograd.grad(function(*leaves), leaves, dy)
        for position, gradient in enumerate(gradients):
            step = 1e-2 * torch.randn_like(leaves[position])
            ends = [[x.detach() for x in leaves] for _ in range(2)]
            ends[0][position], ends[1][position] = (
                leaves[position].detach() + sign * step for sign in (1, -1)
            )
            difference = [function(*x).double().mul(dy).sum() for x in ends]
            expected = (gradient.double() * 2 * step).sum()
            torch.testing.assert_close(
                difference[0] - difference[1], expected, rtol=5e-3, atol=2e-3
            )


def test_dtypes_of_results_and_gradients():
    x, gain = torch.randn(3, 16).bfloat16().requires_grad_(), torch.randn(16).requires_grad_()
    assert parallax.norm_rope(x, gain).dtype == torch.bfloat16
    y = parallax.norm_rope(x, gain, dtype=torch.float16)
    assert y.dtype == torch.float16
    gradients = torch.autograd.grad(y.sum(), (x, gain))
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32]
    up = torch.randn(3, 16).half().requires_grad_()
    y = parallax.swiglu(x, up)
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in torch.autograd.grad(y.sum(), (x, up))] == [x.dtype, up.dtype]
    with torch.autocast("cpu", dtype=torch.float16):
        assert parallax.norm_rope(x, gain).dtype == torch.bfloat16


def test_any_strides_give_the_bits_of_contiguous_tensors():
    inputs, dy = make_norm_rope("both", torch.bfloat16)
    x = inputs["x"]
    expected = with_gradients(parallax.norm_rope, inputs, dy)
    wide = torch.randn(*x.shape[:-1], x.shape[-1] + 5).bfloat16()
    wide[..., 2:-3] = x
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)
    last = x.movedim(-1, 0).contiguous().movedim(0, -1)
    for view in (wide[..., 2:-3], transposed, last):
        actual = with_gradients(parallax.norm_rope, {**inputs, "x": view}, dy)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    gate, up = x, dy.clone()
    ones = torch.ones(()).bfloat16().expand_as(gate)
    expected = with_gradients(parallax.swiglu, {"gate": gate, "up": up}, ones.contiguous())
    actual = with_gradients(parallax.swiglu, {"gate": last, "up": up}, ones)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_serves_every_shape_with_the_eager_bits(backend):
    torch._dynamo.reset()

    def block(x, gain, cos, sin):
        turned = parallax.norm_rope(x, gain, cos, sin, dtype=torch.bfloat16)
        return parallax.swiglu(turned, turned + 1)

    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for batch, tokens, heads, dim in ((2, 5, 3, 8), (4, 9, 7, 12), (6, 11, 13, 10)):
        x, gain = torch.randn(batch, tokens, heads, dim), torch.randn(dim)
        tables = [torch.randn(tokens, dim // 2) for _ in range(2)]
        results = []
        for function in (compiled, block):
            leaves = [t.clone().requires_grad_() for t in (x, gain)]
            y = function(*leaves, *tables)
            results.append([y, *torch.autograd.grad(y.float().square().sum(), leaves)])
        assert all(torch.equal(a, e) for a, e in zip(*results, strict=True))
        counts.append(counter.frame_count)
    assert counts == [counts[0]] * 3  # PyTorch traces twice at first, since eps is a number


def test_checkpointing_changes_no_bit():
    inputs, dy = make_norm_rope("both", torch.bfloat16)

    def block(**tensors):
        return parallax.swiglu(parallax.norm_rope(**tensors), tensors["x"])

    def recomputed(**tensors):
        return checkpoint(block, **tensors, use_reentrant=False)

    results = [with_gradients(function, inputs, dy) for function in (recomputed, block)]
    assert all(torch.equal(a, e) for a, e in zip(*results, strict=True))


def test_gradients_that_do_not_exist_are_refused():
    inputs, _ = make_norm_rope("both", torch.float32)
    y = parallax.norm_rope(**{**inputs, "cos": inputs["cos"].requires_grad_()})
    with pytest.raises(RuntimeError, match="norm_rope is not differentiable in cos and sin"):
        y.sum().backward()
    x = torch.randn(2, 8, requires_grad=True)
    for y in (parallax.norm_rope(x, torch.ones(8)), parallax.swiglu(x, x)):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            gradient.sum().backward()


def test_what_is_no_tensor_or_number_is_named():
    x = torch.randn(2, 8)
    with pytest.raises(TypeError, match="norm_rope: gain is of type list"):
        parallax.norm_rope(x, [1.0])
    with pytest.raises(TypeError, match=r"norm_rope: eps is of type Tensor.*must be a float \("):
        parallax.norm_rope(x, torch.ones(8), eps=torch.tensor(1e-6))
    with pytest.raises(TypeError, match="swiglu: up is of type NoneType"):
        parallax.swiglu(x, None)
