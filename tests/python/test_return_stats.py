# SPDX-License-Identifier: Apache-2.0
"""When the forward op returns its statistics, and that `out` has the same bits without them."""

import parallax
import pytest
import torch
from naive import make_inputs
from torch._dynamo.backends.registry import lookup_backend
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("poisoned_memory", "seed")

ops = torch.ops.parallax
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REFUSED = "parallax::attention_forward is not differentiable with return_stats=False"


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def dense(*shape, dtype=torch.float32):
    return [*make_inputs(*shape, dtype), None, None]


def packed(cu_q, cu_k, *shape, dtype=torch.float32):
    tensors = make_inputs(1, cu_q[-1], cu_k[-1], *shape, dtype)
    return [*(x[0] for x in tensors), int32(*cu_q), int32(*cu_k)]


def attend(q, r, k, v, cu_q, cu_k, **options):
    if cu_q is None:
        return parallax.attention(q, r, k, v, **options)
    return parallax.varlen_attention(q, r, k, v, cu_q, cu_k, **options)


class _Forwards(TorchDispatchMode):
    """The results of every forward op that runs."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is ops.attention_forward.default:
            self.results.append(result)
        return result


def returns_stats(run) -> list[bool]:
    """For each forward op in run(), whether the statistics were there; all or none of them are."""
    with _Forwards() as forwards:
        run()
    has_any = [[x.numel() > 0 for x in result[1:]] for result in forwards.results]
    assert all(len(set(of_call)) == 1 for of_call in has_any)
    return [of_call[0] for of_call in has_any]


CALLS = {
    "causal": (lambda dtype: dense(2, 150, 150, 4, 2, 64, dtype=dtype), (None, True, None)),
    "window": (lambda dtype: dense(1, 130, 140, 4, 1, 40, dtype=dtype), (0.3, True, 33)),
    "full": (lambda dtype: dense(1, 70, 129, 3, 3, 128, dtype=dtype), (None, False, None)),
    "few queries": (lambda dtype: dense(2, 1, 300, 8, 2, 64, dtype=dtype), (None, True, None)),
    "hidden queries": (lambda dtype: dense(1, 20, 7, 2, 2, 256, dtype=dtype), (None, True, None)),
    "no query": (lambda dtype: dense(2, 0, 7, 4, 2, 8, dtype=dtype), (None, True, None)),
    "packed": (
        lambda dtype: packed((0, 64, 64, 65, 190), (0, 80, 90, 91, 230), 4, 2, 64, dtype=dtype),
        (None, True, None),
    ),
    "packed window": (
        lambda dtype: packed((0, 100, 230), (0, 100, 230), 2, 1, 33, dtype=dtype),
        (None, True, 50),
    ),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_out_has_the_same_bits_without_statistics(call, dtype, backend, monkeypatch):
    make, options = CALLS[call]
    inputs = make(dtype)
    if not (backend == "cpu" and dtype == torch.float64):  # which only the reference computes
        monkeypatch.setenv("PLX_BACKEND", backend)
    with_stats = ops.attention_forward(*inputs, *options)
    without = ops.attention_forward(*inputs, *options, return_stats=False)
    assert torch.equal(without[0].view(torch.uint8), with_stats[0].view(torch.uint8))
    assert not without[0].isnan().any()
    for left_out, returned in zip(without[1:], with_stats[1:], strict=True):
        assert left_out.shape == (0,)
        assert (left_out.dtype, left_out.device) == (returned.dtype, returned.device)


@pytest.mark.parametrize("make", [CALLS["causal"][0], CALLS["packed"][0]], ids=["dense", "packed"])
def test_statistics_are_computed_only_where_they_are_needed(make):
    *tensors, cu_q, cu_k = make(torch.float32)

    def run(**options):
        return attend(*tensors, cu_q, cu_k, **options)

    assert returns_stats(run) == [False]
    assert returns_stats(lambda: run(return_stats=True)) == [True]
    expected = run()
    for tensor in tensors:  # any one of the four is reason enough
        tensor.requires_grad_()
        assert returns_stats(run) == [True]
        with torch.no_grad():
            assert returns_stats(run) == [False]
            assert returns_stats(lambda: run(return_stats=True)) == [True]
        with torch.inference_mode():
            assert returns_stats(run) == [False]
        assert torch.equal(run().detach(), expected)
        tensor.requires_grad_(False)


def test_autocast_hands_the_argument_on():
    inputs = dense(1, 9, 9, 2, 1, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert returns_stats(lambda: attend(*inputs)) == [False]
        assert returns_stats(lambda: attend(*inputs, return_stats=True)) == [True]


@pytest.mark.parametrize("backend", [None, "aot_eager", "inductor"])
def test_a_gradient_without_statistics_is_refused_when_it_is_asked_for(backend):
    def run(*tensors):
        return ops.attention_forward(*tensors, None, None, None, True, None, return_stats=False)[0]

    torch._dynamo.reset()
    compiled = run if backend is None else torch.compile(run, fullgraph=True, backend=backend)
    for position in range(4):
        tensors = make_inputs(1, 5, 7, 2, 1, 8)
        tensors[position].requires_grad_()
        out = compiled(*tensors)
        assert torch.equal(out, parallax.attention(*tensors))
        with pytest.raises(RuntimeError, match=REFUSED):
            out.sum().backward()
        assert tensors[position].grad is None


def test_the_backward_op_refuses_statistics_that_were_left_out():
    tensors = make_inputs(1, 5, 7, 2, 1, 8)
    options = (None, None, None, True, None)
    saved = ops.attention_forward(*tensors, *options, return_stats=False)
    with pytest.raises(RuntimeError, match=r"out_softmax has shape \[0\]; it must be"):
        ops.attention_backward(torch.ones_like(saved[0]), *tensors, *saved, *options, True)


def test_tensors_inside_vmap_may_need_gradients():
    batches = [torch.randn(3, 1, 6, h, 8, requires_grad=True) for h in (2, 2, 1, 1)]
    expected = torch.stack([parallax.attention(*(x[i] for x in batches)) for i in range(3)])
    d_out = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, batches, d_out)
    torch._dynamo.reset()
    mapped = torch.func.vmap(parallax.attention)
    for run in (mapped, torch.compile(mapped, fullgraph=True, backend="aot_eager")):
        actual = torch.autograd.grad(run(*batches), batches, d_out)
        assert all(torch.equal(a, e) for a, e in zip(actual, gradients, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_calls_ask_as_eager_ones_do(backend):
    """Also where a parameter, not an input of the function, makes a gradient needed."""
    torch._dynamo.reset()
    asked = []

    def compile_graph(graph_module, example_inputs):
        asked.extend(
            node.kwargs["return_stats"]
            for node in graph_module.graph.nodes
            if str(node.target) == "parallax.attention_forward"
        )
        return lookup_backend(backend)(graph_module, example_inputs)

    layer = torch.nn.Linear(8, 8)
    q, r, k, v = make_inputs(2, 5, 7, 4, 2, 8)

    def run():
        return parallax.attention(layer(q), r, k, v)

    compiled = torch.compile(run, fullgraph=True, backend=compile_graph)
    with torch.no_grad():
        without = compiled()
    actual, expected = compiled(), run()
    assert torch.equal(without, expected) and torch.equal(actual, expected)
    d_out = torch.randn_like(expected)
    gradients = (torch.autograd.grad(out, [layer.weight], d_out)[0] for out in (actual, expected))
    assert torch.equal(*gradients)
    layer.requires_grad_(False)
    assert torch.equal(compiled(), expected)
    assert asked == [False, True, False]
