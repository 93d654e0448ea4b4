# SPDX-License-Identifier: Apache-2.0
"""Gradients by finite differences, and how the ops meet autograd, autocast and checkpointing."""

import parallax
import pytest
import torch
from naive import assert_close, make_inputs
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("poisoned_memory", "seed")


def leaves_of(inputs):
    return [x.detach().clone().requires_grad_() for x in inputs]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 4, 4, 2, 2, 3), {}),
        ((1, 5, 5, 4, 2, 3), {}),
        ((1, 5, 5, 3, 1, 2), {"causal": False, "scale": 0.7}),
        ((1, 6, 6, 2, 1, 3), {"window": 3}),
        ((1, 3, 6, 2, 1, 3), {}),
        ((1, 6, 4, 2, 1, 3), {}),
        ((1, 3, 6, 2, 1, 1), {"window": 2}),
    ],
)
def test_gradients_match_finite_differences(shape, options):
    batch, tq, tk, hq, hkv, dim = shape
    leaves = leaves_of(make_inputs(batch, tq, tk, hq, hkv, dim, torch.float64))
    assert torch.autograd.gradcheck(lambda *x: parallax.attention(*x, **options), leaves)


def test_packed_gradients_match_finite_differences():
    cu_q, cu_k = (torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 2, 6], [0, 3, 4, 7]))
    leaves = leaves_of(x[0] for x in make_inputs(1, 6, 7, 2, 1, 3, torch.float64))

    def attend(*tensors):
        return parallax.varlen_attention(*tensors, cu_q, cu_k, window=3)

    assert torch.autograd.gradcheck(attend, leaves)


def test_statistics_carry_no_gradient():
    leaves = leaves_of(make_inputs(1, 4, 4, 2, 2, 8))
    state = parallax.attention(*leaves, return_stats=True)
    assert state.out.requires_grad
    assert not any(x.requires_grad for x in state[1:])


def test_double_backward_is_refused():
    leaves = leaves_of(make_inputs(1, 4, 4, 2, 2, 8))
    (dq,) = torch.autograd.grad(parallax.attention(*leaves).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"double backward .* is not supported"):
        dq.sum().backward()


def test_gradients_of_decode_and_merge_are_refused():
    leaves = leaves_of(make_inputs(1, 1, 4, 2, 2, 8))
    state = parallax.decode(*leaves, return_stats=True)
    with pytest.raises(RuntimeError, match="parallax::decode is not differentiable"):
        state.out.sum().backward()
    state = parallax.State(*(x.detach().requires_grad_() for x in state))
    with pytest.raises(RuntimeError, match="parallax::merge_states is not differentiable"):
        parallax.merge_states([state, state]).out.sum().backward()


@pytest.mark.parametrize("position", range(4))
def test_forward_mode_derivatives_are_refused(position):
    inputs = make_inputs(1, 4, 4, 2, 2, 8)
    cu = torch.tensor([0, 4], dtype=torch.int32)

    def packed(*tensors):
        return parallax.varlen_attention(*(x[0] for x in tensors), cu, cu)

    for attend in (parallax.attention, packed, parallax.decode):

        def of_one(x, attend=attend):
            return attend(*(x if i == position else inputs[i] for i in range(4)))

        with pytest.raises(RuntimeError, match="carries a forward-mode tangent"):
            torch.func.jvp(of_one, (inputs[position],), (inputs[position],))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(inputs[position], inputs[position])
            with pytest.raises(RuntimeError, match="carries a forward-mode tangent"):
                of_one(dual)
            of_one(inputs[position])  # without a tangent it is a call like any other


def test_only_some_inputs_may_need_gradients():
    q, r, k, v = make_inputs(1, 6, 6, 2, 1, 8)
    everything = leaves_of((q, r, k, v))
    full = torch.autograd.grad(parallax.attention(*everything).sum(), everything)
    r.requires_grad_()
    parallax.attention(q, r, k, v).sum().backward()
    assert torch.equal(r.grad, full[1])
    assert q.grad is None


def test_no_grad_keeps_nothing():
    leaves = leaves_of(make_inputs(1, 6, 6, 2, 1, 8))
    with torch.no_grad():
        assert parallax.attention(*leaves).grad_fn is None


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(use_reentrant):
    leaves = leaves_of(make_inputs(1, 9, 9, 2, 1, 8))
    expected = torch.autograd.grad(parallax.attention(*leaves).square().sum(), leaves)
    out = checkpoint(parallax.attention, *leaves, use_reentrant=use_reentrant)
    out.square().sum().backward()
    assert all(torch.equal(x.grad, e) for x, e in zip(leaves, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_computes_in_its_dtype_and_returns_float32_gradients(dtype, compiled):
    def attend(*tensors):
        with torch.autocast("cpu", dtype=dtype):
            return parallax.attention(*tensors)

    inputs = make_inputs(1, 9, 9, 2, 1, 8)
    inputs[1] = inputs[1].to(dtype)  # mixed dtypes meet in the autocast dtype
    leaves = leaves_of(inputs)
    if compiled:
        torch._dynamo.reset()
    run = torch.compile(attend, fullgraph=True, backend="aot_eager") if compiled else attend
    out = run(*leaves)
    assert out.dtype == dtype
    gradients = torch.autograd.grad(out.float().sum(), leaves)
    assert [g.dtype for g in gradients] == [x.dtype for x in leaves]
    lowered = leaves_of(x.to(dtype) for x in inputs)
    expected_out = parallax.attention(*lowered)
    assert torch.equal(out, expected_out)
    expected = torch.autograd.grad(expected_out.float().sum(), lowered)
    assert all(torch.equal(g, e.to(g.dtype)) for g, e in zip(gradients, expected, strict=True))


def test_autocast_leaves_float64_alone():
    inputs = make_inputs(1, 4, 4, 2, 1, 8, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert parallax.attention(*inputs).dtype == torch.float64


def test_autocast_casts_decode_queries_to_the_cache():
    q, r, k, v = make_inputs(1, 1, 9, 2, 1, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = parallax.decode(q.bfloat16(), r, k, v)
    assert out.dtype == torch.float32
    assert_close("out", out, parallax.decode(q.bfloat16().float(), r, k, v), 0.0)


def test_deterministic_reaches_the_backward_op():
    leaves = leaves_of(make_inputs(1, 4, 4, 2, 2, 8))
    for given, flag, expected in ((None, True, True), (None, False, False), (True, False, True)):
        torch.use_deterministic_algorithms(flag)
        out = parallax.attention(*leaves, deterministic=given)
        with _RecordedCalls() as calls:
            out.sum().backward()
        assert calls.arguments("parallax::attention_backward")[-1] is expected


class _RecordedCalls(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the arguments of every op that is called."""

    def __init__(self):
        super().__init__()
        self._calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._calls.append((func._schema.name, args))
        return func(*args, **(kwargs or {}))

    def arguments(self, op):
        (arguments,) = [args for name, args in self._calls if name == op]
        return arguments
