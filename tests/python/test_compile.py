# SPDX-License-Identifier: Apache-2.0
"""The ops under torch.library's own checks, and torch.compile of forward and backward."""

import parallax
import pytest
import torch
from naive import make_inputs
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

pytestmark = pytest.mark.usefixtures("seed")

ops = torch.ops.parallax


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def packed(tensors):
    return [x[0] for x in tensors]


FORWARD_CASES = {
    "dense": lambda: (*make_inputs(2, 5, 7, 4, 2, 8), None, None, None, True, None),
    "window": lambda: (*make_inputs(2, 5, 7, 4, 2, 8), None, None, 0.5, True, 3),
    "full": lambda: (*make_inputs(1, 5, 7, 2, 2, 8), None, None, None, False, None),
    "bfloat16": lambda: (*make_inputs(1, 5, 7, 2, 2, 8, torch.bfloat16), None, None, 1.0, True, 2),
    "float64": lambda: (*make_inputs(1, 5, 7, 2, 2, 8, torch.float64), None, None, 1.0, True, 2),
    "packed": lambda: (
        *packed(make_inputs(1, 9, 11, 4, 2, 8)),
        int32(0, 4, 9),
        int32(0, 5, 11),
        None,
        True,
        None,
        True,
    ),
}


@pytest.mark.parametrize("needs_gradient", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", FORWARD_CASES)
def test_opcheck_attention_forward(case, needs_gradient):
    arguments = FORWARD_CASES[case]()
    for tensor in arguments[:4]:
        tensor.requires_grad_(needs_gradient)
    opcheck(ops.attention_forward.default, arguments)


@pytest.mark.parametrize("case", FORWARD_CASES)
def test_opcheck_attention_forward_without_statistics(case):
    opcheck(ops.attention_forward.default, FORWARD_CASES[case](), {"return_stats": False})


@pytest.mark.parametrize("case", FORWARD_CASES)
def test_opcheck_attention_backward(case):
    *inputs, cu_q, cu_k, scale, causal, window = FORWARD_CASES[case]()[:9]
    saved = ops.attention_forward(*inputs, cu_q, cu_k, scale, causal, window)
    d_out = torch.randn_like(saved[0])
    options = (cu_q, cu_k, scale, causal, window, True)
    opcheck(ops.attention_backward.default, (d_out, *inputs, *saved, *options))


def test_opcheck_decode():
    q, r, k, v = make_inputs(2, 3, 32, 4, 2, 8)
    lengths, starts = int32(20, 32), int32(0, 4)
    options = (None, None, None, 4, True)
    opcheck(ops.decode.default, (q, r, k, v, starts, lengths, None, None, *options))
    pages = [x.reshape(4, 16, 2, 8) for x in (k, v)]
    table = int32(2, 3, 0, 1).reshape(2, 2)
    opcheck(ops.decode.default, (q, r, *pages, None, lengths, None, table, *options))
    ragged = (q.reshape(6, 4, 8), r.reshape(6, 4, 8), k, v, None, lengths, int32(0, 1, 6), None)
    opcheck(ops.decode.default, (*ragged, *options))


def test_opcheck_merge_states():
    q, r, k, v = make_inputs(2, 3, 8, 4, 2, 8)
    states = [
        parallax.decode(q, r, k[:, part], v[:, part], return_stats=True)
        for part in (slice(4), slice(4, 8))
    ]
    opcheck(ops.merge_states.default, tuple(list(column) for column in zip(*states, strict=True)))


ROW_OP_CASES = {
    "norm": (True, False, torch.float32),
    "rotate": (False, True, torch.float32),
    "both": (True, True, torch.bfloat16),
}


@pytest.mark.parametrize("case", ROW_OP_CASES)
def test_opcheck_norm_rope(case):
    norm, rotate, dtype = ROW_OP_CASES[case]
    x, dy = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 8).to(dtype)
    gain = torch.randn(8) if norm else None
    cos, sin = torch.randn(2, 5, 4) if rotate else (None, None)
    opcheck(ops.norm_rope.default, (x, gain, cos, sin, 1e-6, dtype))
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x, gain)]
    opcheck(ops.norm_rope.default, (*leaves, cos, sin, 1e-6, dtype))
    opcheck(ops.norm_rope_backward.default, (dy, x, gain, cos, sin, 1e-6))


def test_opcheck_swiglu():
    dy, gate, up = torch.randn(3, 2, 7, 10)
    opcheck(ops.swiglu.default, (gate, up))
    opcheck(ops.swiglu.default, tuple(t.clone().requires_grad_() for t in (gate, up)))
    opcheck(ops.swiglu_backward.default, (dy, gate, up))


# torch.compile takes sizes that are equal in the first call for one symbol, so the first calls
# below have no two equal sizes that later differ.


def run_and_compare(compiled, eager, inputs, *rest):
    """Forward and backward of both, which must agree bit for bit."""
    results = []
    for attend in (compiled, eager):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = attend(*leaves, *rest)
        gradients = torch.autograd.grad(out.square().sum(), leaves)
        results.append([out, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_serves_every_dense_shape(backend):
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend(backend)
    compiled = torch.compile(parallax.attention, fullgraph=True, dynamic=True, backend=graphs)
    for batch, tq, tk in ((3, 5, 7), (2, 9, 12), (4, 17, 33), (5, 6, 40)):
        inputs = make_inputs(batch, tq, tk, 4, 2, 8)
        run_and_compare(compiled, parallax.attention, inputs)
    assert graphs.frame_count == 1


def test_one_graph_serves_every_packed_shape():
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")

    def attend(q, r, k, v, cu_q, cu_k):
        return parallax.varlen_attention(q, r, k, v, cu_q, cu_k, window=4)

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=graphs)
    for cu_q, cu_k in (((0, 3, 9), (0, 5, 11)), ((0, 0, 7, 12), (0, 2, 9, 14))):
        inputs = packed(make_inputs(1, cu_q[-1], cu_k[-1], 4, 2, 8))
        run_and_compare(compiled, attend, inputs, int32(*cu_q), int32(*cu_k))
    assert graphs.frame_count == 1


def test_one_graph_serves_every_decode_length():
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")

    def step(q, r, k, v, lengths):
        return parallax.decode(q, r, k, v, cache_seqlens=lengths, return_stats=True)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=graphs)
    for batch, capacity in ((3, 16), (2, 40), (5, 64)):
        inputs = make_inputs(batch, 1, capacity, 4, 2, 8)
        lengths = torch.arange(1, batch + 1, dtype=torch.int32)
        results = compiled(*inputs, lengths), step(*inputs, lengths)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert graphs.frame_count == 1


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_empty_tensors_have_compiled_gradients(backend):
    torch._dynamo.reset()
    attend = torch.compile(parallax.attention, fullgraph=True, dynamic=True, backend=backend)
    for batch, tq, tk in ((2, 0, 10), (0, 5, 7), (2, 5, 0)):
        leaves = [x.requires_grad_() for x in make_inputs(batch, tq, tk, 4, 2, 8)]
        attend(*leaves).sum().backward()
        assert all(torch.all(x.grad == 0) for x in leaves)


def test_an_empty_packed_batch_has_compiled_gradients():
    torch._dynamo.reset()
    attend = torch.compile(parallax.varlen_attention, fullgraph=True, backend="aot_eager")
    leaves = [x.requires_grad_() for x in packed(make_inputs(1, 0, 7, 4, 2, 8))]
    attend(*leaves, int32(0, 0), int32(0, 7)).sum().backward()
    assert all(torch.all(x.grad == 0) for x in leaves)


@pytest.mark.parametrize("sizes", [(2, 0, 7), (0, 5, 7), (2, 5, 0)], ids=str)
def test_opcheck_empty_tensors(sizes):
    tensors = [x.requires_grad_() for x in make_inputs(*sizes, 4, 2, 8)]
    arguments = (None, None, None, True, None)
    opcheck(ops.attention_forward.default, (*tensors, *arguments))
    tensors = [x.detach() for x in tensors]
    opcheck(ops.attention_forward.default, (*tensors, *arguments), {"return_stats": False})


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_decode_refuses_gradients_when_they_are_asked_for(backend):
    torch._dynamo.reset()
    decode = torch.compile(parallax.decode, fullgraph=True, dynamic=True, backend=backend)
    for batch, capacity in ((3, 16), (2, 40)):
        q, r, k, v = make_inputs(batch, 1, capacity, 4, 2, 8)
        out = decode(q.requires_grad_(), r, k, v)
        assert torch.equal(out, parallax.decode(q, r, k, v))
        with pytest.raises(RuntimeError, match="parallax::decode is not differentiable"):
            out.sum().backward()


def test_compiled_merge_refuses_gradients_when_they_are_asked_for():
    torch._dynamo.reset()
    state = parallax.decode(*make_inputs(2, 3, 8, 4, 2, 8), return_stats=True)
    state = parallax.State(*(x.requires_grad_() for x in state))
    merge = torch.compile(parallax.merge_states, fullgraph=True, backend="aot_eager")
    merged = merge([state, state])
    assert torch.equal(merged.out, parallax.merge_states([state, state]).out)
    with pytest.raises(RuntimeError, match="parallax::merge_states is not differentiable"):
        merged.out.sum().backward()


def test_what_sizes_show_to_be_wrong_is_refused_when_traced():
    torch._dynamo.reset()
    ran = []
    compiled = torch.compile(
        lambda q, r, k, v: parallax.attention(q, r, k[..., :4], v),
        fullgraph=True,
        backend=lambda graph, _: ran.append(graph) or graph.forward,
    )
    with pytest.raises(RuntimeError, match=r"k has shape \[2, 7, 2, 4\]; it must be"):
        compiled(*make_inputs(2, 5, 7, 4, 2, 8))
    assert not ran


def test_backward_of_a_compiled_graph_is_the_backward_op():
    torch._dynamo.reset()
    graphs = []

    def keep(graph_module, example_inputs):
        graphs.append([str(node.target) for node in graph_module.graph.nodes])
        return graph_module.forward

    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    leaves = [x.requires_grad_() for x in make_inputs(2, 5, 7, 4, 2, 8)]
    out = torch.compile(parallax.attention, fullgraph=True, backend=backend)(*leaves)
    out.sum().backward()
    forward, backward = graphs
    assert "parallax.attention_forward.default" in forward
    assert "parallax.attention_backward.default" in backward
    assert "parallax.attention_forward.default" not in backward
