# SPDX-License-Identifier: Apache-2.0
"""The ops on CUDA tensors under PyTorch's machinery: opcheck, torch.compile, graphs, streams.

And what must not change a bit: repeats, other work on the device, keys that are not seen.
"""

import parallax
import pytest
import torch
from cuda_support import DEVICE, equal_bits, int32, on_device, skip_module_without_cuda
from naive import make_inputs
from torch.library import opcheck

skip_module_without_cuda()

pytestmark = pytest.mark.usefixtures("seed")

ops = torch.ops.parallax
NUM_REPEATS = 200


def dense_inputs(*shape):
    """q, r, k, v, d_out in bfloat16."""
    inputs = on_device(make_inputs(*shape, torch.bfloat16))
    return [*inputs, torch.randn_like(inputs[0])]


def forward_and_backward(q, r, k, v, d_out, **options):
    """The State and the gradients, as one list."""
    leaves = [x.detach().requires_grad_() for x in (q, r, k, v)]
    state = parallax.attention(*leaves, return_stats=True, deterministic=True, **options)
    return [*(x.detach() for x in state), *torch.autograd.grad(state.out, leaves, d_out)]


# ---- opcheck and torch.compile ----------------------------------------------------------------


@pytest.mark.parametrize("needs_gradient", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("window", [None, 3])
def test_opcheck_forward(window, needs_gradient):
    tensors = on_device(make_inputs(2, 5, 7, 4, 2, 64, torch.bfloat16))
    for tensor in tensors:
        tensor.requires_grad_(needs_gradient)
    opcheck(ops.attention_forward.default, (*tensors, None, None, None, True, window))


@pytest.mark.parametrize("window", [None, 3])
def test_opcheck_forward_without_statistics(window):
    tensors = on_device(make_inputs(2, 5, 7, 4, 2, 64, torch.bfloat16))
    arguments = (*tensors, None, None, None, True, window)
    opcheck(ops.attention_forward.default, arguments, {"return_stats": False})


def test_opcheck_packed_forward_and_backward():
    tensors = [x[0] for x in on_device(make_inputs(1, 9, 11, 4, 2, 64, torch.bfloat16))]
    options = (int32(0, 4, 9), int32(0, 5, 11), 0.5, True, None, True)
    opcheck(ops.attention_forward.default, (*tensors, *options))
    saved = ops.attention_forward(*tensors, *options)
    d_out = torch.randn_like(saved[0])
    opcheck(ops.attention_backward.default, (d_out, *tensors, *saved, *options))


def test_opcheck_decode_and_merge_states():
    q, r, k, v = on_device(make_inputs(2, 3, 32, 4, 2, 64, torch.bfloat16))
    lengths, table = int32(20, 32), int32(2, 3, 0, 1).reshape(2, 2)
    options = (None, None, None, 4, True)
    opcheck(ops.decode.default, (q, r, k, v, None, lengths, None, None, *options))
    pages = [x.reshape(4, 16, 2, 64) for x in (k, v)]
    opcheck(ops.decode.default, (q, r, *pages, None, lengths, None, table, *options))
    states = [parallax.decode(q, r, k, v, return_stats=True) for _ in range(2)]
    opcheck(ops.merge_states.default, tuple(list(column) for column in zip(*states, strict=True)))


def test_compiled_forward_and_backward_have_the_eager_bits():
    pytest.importorskip("triton", reason="torch.compile for GPUs needs Triton")
    torch._dynamo.reset()
    *inputs, d_out = dense_inputs(2, 130, 140, 4, 2, 64)
    compiled = torch.compile(parallax.attention, fullgraph=True)
    results = []
    for attend in (compiled, parallax.attention):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = attend(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, d_out)])
    assert equal_bits(*results)


def test_compiled_inference_has_the_eager_bits():
    pytest.importorskip("triton", reason="torch.compile for GPUs needs Triton")
    torch._dynamo.reset()
    inputs = dense_inputs(2, 130, 140, 4, 2, 64)[:4]
    compiled = torch.compile(parallax.attention, fullgraph=True)
    state = parallax.attention(*inputs, return_stats=True)
    assert equal_bits([compiled(*inputs)], [state.out])


def test_compiled_decode_has_the_eager_bits():
    pytest.importorskip("triton", reason="torch.compile for GPUs needs Triton")
    torch._dynamo.reset()
    inputs = on_device(make_inputs(3, 1, 200, 4, 2, 64, torch.bfloat16))
    lengths = int32(5, 100, 200)
    compiled = torch.compile(parallax.decode, fullgraph=True)
    eager = parallax.decode(*inputs, cache_seqlens=lengths)
    assert equal_bits([compiled(*inputs, cache_seqlens=lengths)], [eager])


# ---- CUDA graphs ------------------------------------------------------------------------------


def capture(run):
    """A graph of one call of run() and the results that a replay overwrites."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


def check_replays(run, static, draw_inputs):
    """Replays give the bits of eager calls, on inputs that were overwritten in place."""
    graph, results = capture(run)
    for _ in range(3):
        for tensor, new in zip(static, draw_inputs(), strict=True):
            tensor.copy_(new)
        for tensor in results:
            tensor.fill_(float("nan"))
        graph.replay()
        replayed = [x.clone() for x in results]
        assert equal_bits(replayed, run())


@pytest.mark.parametrize("return_stats", [True, False], ids=["statistics", "inference"])
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 70}], ids=str)
def test_a_replay_of_attention_has_the_eager_bits(options, return_stats, cuda_backend):
    shape = (2, 200, 200, 4, 2, 128)
    static = dense_inputs(*shape)[:4]

    def run():
        with torch.no_grad():
            results = parallax.attention(*static, return_stats=return_stats, **options)
        return list(results) if return_stats else [results]

    check_replays(run, static, lambda: dense_inputs(*shape)[:4])


def test_a_replay_of_forward_and_backward_has_the_eager_bits(cuda_backend):
    shape = (2, 200, 200, 4, 2, 128)
    static = dense_inputs(*shape)
    check_replays(lambda: forward_and_backward(*static), static, lambda: dense_inputs(*shape))


def test_a_replay_of_packed_attention_follows_the_lengths(cuda_backend):
    static = [*(x[0] for x in dense_inputs(1, 300, 300, 4, 2, 64)[:4]), int32(0, 100, 300)]

    def run():
        with torch.no_grad():
            return list(parallax.varlen_attention(*static, static[4], return_stats=True))

    def draw():
        first = torch.randint(0, 301, (), dtype=torch.int32).item()
        return [*(x[0] for x in dense_inputs(1, 300, 300, 4, 2, 64)[:4]), int32(0, first, 300)]

    check_replays(run, static, draw)


@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
def test_a_replay_of_decode_follows_lengths_and_pages(paged, cuda_backend):
    batch, max_pages, page_size = 3, 20, 16
    capacity = max_pages * page_size

    def draw():
        q, r, k, v = dense_inputs(batch, 1, capacity, 8, 2, 128)[:4]
        lengths = torch.randint(1, capacity + 1, (batch,), dtype=torch.int32)
        table = torch.randperm(batch * max_pages, dtype=torch.int32).reshape(batch, max_pages)
        if paged:
            k, v = (x.reshape(-1, page_size, 2, 128) for x in (k, v))
        return [q, r, k, v, lengths.to(DEVICE), table.to(DEVICE)]

    static = draw()

    def run():
        *tensors, lengths, table = static
        options = {"page_table": table} if paged else {}
        with torch.no_grad():
            return list(
                parallax.decode(*tensors, cache_seqlens=lengths, return_stats=True, **options)
            )

    check_replays(run, static, draw)


# ---- streams and repeats ----------------------------------------------------------------------


def every_call(q, r, k, v, d_out):
    """The results of forward, backward, decode and merge_states."""
    results = forward_and_backward(q, r, k, v, d_out)
    with torch.no_grad():
        newest = (q[:, -1:], r[:, -1:])
        half = k.shape[1] // 2
        parts = [
            parallax.decode(*newest, k[:, part], v[:, part], return_stats=True)
            for part in (slice(half), slice(half, None))
        ]
        return [*results, *parts[0], *parts[1], *parallax.merge_states(parts)]


def test_two_streams_at_once_do_not_meet(cuda_backend):
    problems = [dense_inputs(2, 300, 300, 4, 2, 128), dense_inputs(1, 500, 500, 8, 8, 64)]
    expected = [every_call(*problem) for problem in problems]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    results = [[], []]
    for _ in range(20):
        for stream, problem, of_stream in zip(streams, problems, results, strict=True):
            with torch.cuda.stream(stream):
                of_stream.append(every_call(*problem))
    torch.cuda.synchronize()
    for of_stream, truth in zip(results, expected, strict=True):
        assert all(equal_bits(run, truth) for run in of_stream)


def test_repeats_under_load_have_the_same_bits(cuda_backend):
    problem = dense_inputs(2, 700, 700, 4, 2, 128)
    expected = every_call(*problem)
    load = torch.randn(2048, 2048, device=DEVICE, dtype=torch.bfloat16)
    product = torch.empty_like(load)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for call in range(NUM_REPEATS):
        with torch.cuda.stream(side):
            for _ in range(4):
                torch.mm(load, load, out=product)
        assert equal_bits(every_call(*problem), expected), f"call {call + 2}"
    torch.cuda.synchronize()


# ---- what is not seen -------------------------------------------------------------------------

HIDDEN = {"nan": float("nan"), "infinity": float("inf"), "huge": 3e38}


def of_queries(results, rows):
    """out, out_softmax, lse, t_mean, dq and dr of some query rows."""
    out, out_softmax, lse, t_mean, dq, dr = results[:6]
    by_token, by_head = [x[:, rows] for x in (out, out_softmax, dq, dr)], (lse, t_mean)
    return [*by_token, *(x[:, :, rows] for x in by_head)]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("dim", [64, 128])
def test_later_keys_change_no_bit_of_earlier_rows(hidden, dim, cuda_backend):
    q, r, k, v, d_out = dense_inputs(2, 300, 300, 4, 2, dim)
    seen = 170
    before = forward_and_backward(q, r, k, v, d_out)
    k[:, seen:], v[:, seen:] = HIDDEN[hidden], HIDDEN[hidden]
    after = forward_and_backward(q, r, k, v, d_out)
    assert equal_bits(*(of_queries(x, slice(seen)) for x in (after, before)))


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("dim", [64, 128])
def test_later_keys_change_no_bit_of_earlier_rows_in_inference(hidden, dim, cuda_backend):
    q, r, k, v, _ = dense_inputs(2, 300, 300, 4, 2, dim)
    seen = 170
    before = parallax.attention(q, r, k, v, return_stats=True).out
    k[:, seen:], v[:, seen:] = HIDDEN[hidden], HIDDEN[hidden]
    assert equal_bits([parallax.attention(q, r, k, v)[:, :seen]], [before[:, :seen]])


@pytest.mark.parametrize("hidden", HIDDEN)
def test_keys_before_the_window_change_no_bit(hidden, cuda_backend):
    q, r, k, v, d_out = dense_inputs(1, 300, 300, 4, 2, 128)
    window, first = 60, 150
    before = forward_and_backward(q, r, k, v, d_out, window=window)
    k[:, :first], v[:, :first] = HIDDEN[hidden], HIDDEN[hidden]
    after = forward_and_backward(q, r, k, v, d_out, window=window)
    see_none = slice(first + window - 1, None)
    assert equal_bits(*(of_queries(x, see_none) for x in (after, before)))


@pytest.mark.parametrize("hidden", HIDDEN)
def test_other_sequences_of_a_pack_change_no_bit(hidden, cuda_backend):
    q, r, k, v, _ = (x[0] for x in dense_inputs(1, 400, 400, 4, 2, 128))
    cu = int32(0, 130, 280, 400)

    def middle():
        state = parallax.varlen_attention(q, r, k, v, cu, cu, return_stats=True)
        return [x[130:280] for x in state[:2]] + [x[:, 130:280] for x in state[2:]]

    before = middle()
    for tensor in (q, r, k, v):
        tensor[:130], tensor[280:] = HIDDEN[hidden], HIDDEN[hidden]
    assert equal_bits(middle(), before)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_cache_outside_its_valid_keys_changes_no_bit(hidden, cuda_backend):
    q, r, k, v, _ = dense_inputs(3, 2, 600, 8, 2, 128)
    starts, lengths = [0, 5, 64], [2, 333, 599]
    options = {"cache_starts": int32(*starts), "cache_seqlens": int32(*lengths)}
    before = parallax.decode(q, r, k, v, return_stats=True, **options)
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for cache in (k, v):
            cache[i, :start], cache[i, length:] = HIDDEN[hidden], HIDDEN[hidden]
    assert equal_bits(parallax.decode(q, r, k, v, return_stats=True, **options), before)


def test_nan_in_a_visible_value_is_seen(cuda_backend):
    q, r, k, v, _ = dense_inputs(1, 200, 200, 2, 2, 64)
    v[:, 70, :, 5] = torch.nan
    out = parallax.attention(q, r, k, v)
    assert torch.isnan(out[:, 70:, :, 5]).all()
    assert torch.isfinite(out[:, :70]).all()
    assert torch.isfinite(out[..., :5]).all()
