# SPDX-License-Identifier: Apache-2.0
"""The ops on CUDA tensors: values and gradients against the naive definition in float64."""

from itertools import pairwise

import parallax
import pytest
import torch
from cuda_support import (
    DEVICE,
    assert_rows_close,
    assert_statistics_close,
    equal_bits,
    int32,
    needs_hopper,
    on_device,
    skip_module_without_cuda,
)
from naive import make_inputs, naive, naive_with_gradients

skip_module_without_cuda()

pytestmark = pytest.mark.usefixtures("poisoned_device_memory", "seed")

NAMES = ("out", "dq", "dr", "dk", "dv")
# (rms, max) of out and of gradients, rows in units of their largest element. The CPU backend, whose
# weights are less rounded, has a third to an eighth of these errors on these cases.
TOLERANCE = {
    torch.bfloat16: ((5e-3, 3e-2), (6e-3, 1.2e-1)),
    torch.float16: ((1e-3, 4e-3), (1e-3, 1.5e-2)),
    torch.float32: ((5e-6, 5e-5), (1e-5, 1.5e-4)),
}
# Two bfloat16 results of which each may have been rounded either way.
ONE_ULP = (4e-3, 8e-3)


def with_gradients(attend, inputs, d_out):
    """A State and [dq, dr, dk, dv]."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    state = attend(*leaves)
    return state, torch.autograd.grad(state.out, leaves, d_out)


def check_gradients(actual, expected, dtype):
    for name, a, e in zip(NAMES[1:], actual, expected[1:], strict=True):
        assert a.dtype == dtype
        # A row of dq or dr is a difference of large terms, and 0 where one key is visible.
        assert_rows_close(name, a, e, TOLERANCE[dtype][1], smallest=(1.0, 0.1))


def check_dense(inputs, **options):
    dtype = inputs[0].dtype
    d_out = torch.randn_like(inputs[0])
    state, gradients = with_gradients(
        lambda *x: parallax.attention(*x, return_stats=True, **options),
        on_device(inputs),
        d_out.to(DEVICE),
    )
    expected = naive(*(x.double() for x in inputs), **options)
    assert state.out.is_cuda and state.out.dtype == dtype
    for name in ("out", "out_softmax"):
        assert_rows_close(name, getattr(state, name), getattr(expected, name), TOLERANCE[dtype][0])
    assert_statistics_close(state, expected)
    check_gradients(gradients, naive_with_gradients(inputs, d_out, **options), dtype)


# (B, Tq, Tk, Hq, Hkv, D), options. Lengths at the edges of tiles of 64 and 128.
DENSE_CASES = [
    ((1, 1, 1, 1, 1, 64), {}),
    ((2, 63, 63, 2, 2, 64), {}),
    ((1, 64, 64, 4, 2, 128), {}),
    ((2, 65, 65, 3, 1, 128), {"scale": 0.3}),
    ((1, 129, 129, 8, 1, 64), {}),
    ((1, 300, 300, 4, 2, 128), {}),
    ((2, 200, 200, 2, 2, 96), {}),
    ((1, 129, 129, 2, 1, 192), {}),
    ((1, 129, 129, 2, 1, 256), {}),
    ((1, 100, 100, 3, 3, 80), {}),
    ((2, 50, 50, 2, 1, 1), {}),
    ((1, 130, 130, 4, 2, 60), {"window": 33}),
    ((1, 300, 300, 2, 2, 64), {"window": 1}),
    ((1, 300, 300, 4, 2, 128), {"window": 100}),
    ((1, 300, 300, 2, 1, 128), {"window": 1000}),
    ((2, 127, 127, 4, 2, 128), {"causal": False}),
    ((1, 70, 330, 2, 1, 64), {"causal": False}),
    ((1, 130, 300, 4, 2, 128), {}),
    ((1, 1, 257, 4, 4, 64), {}),
    ((1, 200, 70, 2, 2, 64), {}),
    ((1, 130, 300, 4, 2, 128), {"window": 77}),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("shape", "options"), DENSE_CASES, ids=str)
def test_dense_matches_the_definition(shape, options, dtype, cuda_backend):
    check_dense(make_inputs(*shape, dtype), **options)


REGIMES = {
    "sharp logits": lambda q, r, k, v: (4 * q, r, k, v),
    "mean of v": lambda q, r, k, v: (q, r, k, v + 2),
    "mean of t": lambda q, r, k, v: (q, r + 0.625, k + 0.625, v),  # 50 = 128 * 0.625^2
    "zero probe": lambda q, r, k, v: (q, 0 * r, k, v),
}


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_match_the_definition(regime, cuda_backend):
    inputs = REGIMES[regime](*make_inputs(1, 300, 300, 4, 2, 128, torch.bfloat16))
    state = parallax.attention(*on_device(inputs), return_stats=True)
    expected = naive(*(x.double() for x in inputs))
    assert_rows_close("out", state.out, expected.out, (5e-3, 6e-2))
    assert_statistics_close(state, expected)


def test_one_visible_key_gives_its_value_exactly(cuda_backend):
    q, r, k, v = on_device(make_inputs(1, 200, 200, 2, 2, 128, torch.bfloat16))
    assert torch.equal(parallax.attention(q, r, k, v)[:, 0], v[:, 0])
    assert torch.equal(parallax.attention(q, r, k, v, window=1), v)


# cu_seqlens of queries and keys, window, options
PACKED_CASES = [
    ([0, 15], None, {}),
    ([0, 256, 256, 500, 561], None, {}),
    ([0, 64, 192, 193, 400], None, {"window": 50}),
    ([0, 1, 66, 130, 258], [0, 30, 95, 400, 500], {}),
    ([0, 100, 230], [0, 40, 170], {"window": 64}),
    ([0, 70, 200], [0, 70, 70], {}),
    ([0, 100, 230], [0, 40, 170], {"causal": False}),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("cu_q", "cu_k", "options"), PACKED_CASES, ids=str)
def test_packed_matches_the_definition(cu_q, cu_k, options, dtype, cuda_backend):
    cu_k = cu_q if cu_k is None else cu_k
    inputs = [x[0] for x in make_inputs(1, cu_q[-1], cu_k[-1], 4, 2, 128, dtype)]
    d_out = torch.randn_like(inputs[0])
    state, gradients = with_gradients(
        lambda *x: parallax.varlen_attention(
            *x, int32(*cu_q), int32(*cu_k), return_stats=True, **options
        ),
        on_device(inputs),
        d_out.to(DEVICE),
    )
    for (q0, q1), (k0, k1) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
        at = (slice(q0, q1), slice(q0, q1), slice(k0, k1), slice(k0, k1))
        sequence = [x[rows][None] for x, rows in zip(inputs, at, strict=True)]
        expected = naive(*(x.double() for x in sequence), **options)
        for name in ("out", "out_softmax"):
            actual = getattr(state, name)[q0:q1][None]
            assert_rows_close(name, actual, getattr(expected, name), TOLERANCE[dtype][0])
        of_sequence = state._replace(
            lse=state.lse[None, :, q0:q1], t_mean=state.t_mean[None, :, q0:q1]
        )
        assert_statistics_close(of_sequence, expected)
        truth = naive_with_gradients(sequence, d_out[q0:q1][None], **options)
        parts = [x[rows][None] for x, rows in zip(gradients, at, strict=True)]
        check_gradients(parts, truth, dtype)


def check_inference(attend, inputs, **options):
    """`out` has the same bits whether or not the statistics are computed."""
    state = attend(*inputs, return_stats=True, **options)
    with torch.no_grad():
        assert equal_bits([attend(*inputs, **options)], [state.out])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("shape", "options"), DENSE_CASES, ids=str)
def test_dense_inference_has_the_bits_of_training(shape, options, dtype, cuda_backend):
    check_inference(parallax.attention, on_device(make_inputs(*shape, dtype)), **options)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("cu_q", "cu_k", "options"), PACKED_CASES, ids=str)
def test_packed_inference_has_the_bits_of_training(cu_q, cu_k, options, dtype, cuda_backend):
    cu_k = cu_q if cu_k is None else cu_k
    tensors = on_device(x[0] for x in make_inputs(1, cu_q[-1], cu_k[-1], 4, 2, 128, dtype))
    inputs = (*tensors, int32(*cu_q), int32(*cu_k))
    check_inference(parallax.varlen_attention, inputs, **options)


def test_statistics_that_are_left_out_are_empty(cuda_backend):
    op = torch.ops.parallax.attention_forward
    for dtype in TOLERANCE:
        inputs = on_device(make_inputs(1, 70, 70, 4, 2, 64, dtype))
        with_stats = op(*inputs, None, None, None, True, None)
        without = op(*inputs, None, None, None, True, None, return_stats=False)
        assert equal_bits(without[:1], with_stats[:1])
        for left_out, returned in zip(without[1:], with_stats[1:], strict=True):
            assert left_out.shape == (0,)
            assert (left_out.dtype, left_out.device) == (returned.dtype, returned.device)


def test_packed_equals_one_call_per_sequence(cuda_backend):
    cu = [0, 130, 131, 400]
    inputs = [x[0] for x in on_device(make_inputs(1, 400, 400, 4, 2, 64, torch.bfloat16))]
    out = parallax.varlen_attention(*inputs, int32(*cu), int32(*cu))
    for first, last in pairwise(cu):
        alone = parallax.attention(*(x[None, first:last] for x in inputs))
        assert_rows_close("out", out[first:last][None], alone, ONE_ULP)


# B, Tq, capacity, Hq, Hkv, D, window
DECODE_CASES = [
    (2, 1, 137, 2, 2, 64, None),
    (3, 1, 500, 8, 2, 128, None),
    (2, 3, 300, 4, 1, 128, None),
    (2, 1, 1000, 8, 1, 128, 100),
    (2, 70, 200, 4, 2, 64, 32),
    (1, 1, 300, 7, 1, 100, None),
    (1, 1, 5000, 2, 2, 256, None),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", DECODE_CASES, ids=str)
def test_decode_matches_the_definition(case, dtype, cuda_backend):
    batch, tq, capacity, hq, hkv, dim, window = case
    q, r, k, v = make_inputs(batch, tq, capacity, hq, hkv, dim, dtype)
    lengths = torch.linspace(tq, capacity, batch + 1).long()[1:]
    starts = (lengths - tq).clamp_max(7) * (torch.arange(batch) % 2)
    caches = [x.clone() for x in (k, v)]
    for i in range(batch):
        for cache in caches:
            cache[i, lengths[i] :], cache[i, : starts[i]] = torch.nan, torch.nan
    state = parallax.decode(
        *on_device((q, r, *caches)),
        cache_seqlens=lengths.int().to(DEVICE),
        cache_starts=starts.int().to(DEVICE),
        window=window,
        return_stats=True,
    )
    for i, (length, start) in enumerate(zip(lengths.tolist(), starts.tolist(), strict=True)):
        row = slice(i, i + 1)
        valid = [x[row, :length].double() for x in (k, v)]
        expected = naive(q[row].double(), r[row].double(), *valid, window=window, first_key=start)
        of_row = parallax.State(*(x[row] for x in state))
        for name in ("out", "out_softmax"):
            actual = getattr(of_row, name)
            assert_rows_close(name, actual, getattr(expected, name), TOLERANCE[dtype][0])
        assert_statistics_close(of_row, expected)


@pytest.mark.parametrize("page_size", [1, 5, 16, 64])
def test_paged_cache_equals_the_contiguous_one(page_size, cuda_backend):
    batch, max_pages = 3, 320 // page_size
    q, r, k, v = on_device(make_inputs(batch, 2, max_pages * page_size, 4, 2, 64, torch.bfloat16))
    lengths = int32(2, 2 * page_size + 1, max_pages * page_size - 3)
    expected = parallax.decode(q, r, k, v, cache_seqlens=lengths, return_stats=True)
    order = torch.randperm(batch * max_pages).to(DEVICE)
    pages = []
    for x in (k, v):
        memory = torch.full_like(x, torch.nan).view(-1, page_size, 2, 64)
        memory[order] = x.view(-1, page_size, 2, 64)
        pages.append(memory)
    table = order.reshape(batch, max_pages).to(torch.int32)
    for row, length in enumerate(lengths.tolist()):
        table[row, -(-length // page_size) :] = -1
    state = parallax.decode(
        q, r, *pages, cache_seqlens=lengths, page_table=table, return_stats=True
    )
    for name in ("out", "out_softmax"):
        assert_rows_close(name, getattr(state, name), getattr(expected, name), ONE_ULP)
    assert_statistics_close(state, expected)


def test_decode_of_unequal_numbers_of_tokens(cuda_backend):
    q, r, k, v = on_device(make_inputs(3, 40, 300, 4, 2, 64, torch.bfloat16))
    counts, lengths = (1, 40, 17), (300, 90, 17)
    packed = [torch.cat([x[i, 40 - count :] for i, count in enumerate(counts)]) for x in (q, r)]
    cu = int32(0, 1, 41, 58)
    out = parallax.decode(*packed, k, v, cache_seqlens=int32(*lengths), cu_seqlens_q=cu)
    for i, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        alone = parallax.attention(*(x[i : i + 1, 40 - count :] for x in (q, r)),
                                   *(x[i : i + 1, :length] for x in (k, v)))  # fmt: skip
        rows = slice(int(cu[i]), int(cu[i + 1]))
        assert_rows_close("out", out[rows][None], alone, ONE_ULP)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_merging_states_of_key_ranges_gives_the_state_of_all(dtype, cuda_backend):
    q, r, k, v = on_device(make_inputs(2, 1, 700, 4, 2, 64, dtype))
    whole = parallax.decode(q, r, k, v, return_stats=True)
    bounds = [0, 1, 130, 131, 650, 700, 700]
    parts = [
        parallax.decode(q, r, k[:, a:b], v[:, a:b], return_stats=True) for a, b in pairwise(bounds)
    ]
    merged = parallax.merge_states(parts)
    for name in ("out", "out_softmax"):
        assert_rows_close(name, getattr(merged, name), getattr(whole, name), TOLERANCE[dtype][0])
    assert_statistics_close(merged, whole)


def test_strided_inputs_equal_contiguous_ones(cuda_backend):
    inputs = on_device(make_inputs(2, 100, 100, 4, 2, 64, torch.bfloat16))
    d_out = torch.randn_like(inputs[0])
    state, gradients = with_gradients(
        lambda *x: parallax.attention(*x, return_stats=True), inputs, d_out
    )
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    fused = torch.cat([x.flatten(2) for x in inputs], dim=-1)
    heads = torch.tensor([x.shape[2] for x in inputs])
    projections = [x.unflatten(2, (-1, 64)) for x in fused.split((64 * heads).tolist(), dim=-1)]
    for views in (heads_first, projections):
        leaves = [x.detach().requires_grad_() for x in views]
        again = parallax.attention(*leaves, return_stats=True)
        assert equal_bits(again, state)
        assert equal_bits(torch.autograd.grad(again.out, leaves, d_out), gradients)


@pytest.mark.parametrize("sizes", [(0, 5, 5), (2, 0, 5), (2, 5, 0)], ids=str)
def test_empty_batches_and_sequences(sizes, cuda_backend):
    leaves = [x.requires_grad_() for x in on_device(make_inputs(*sizes, 4, 2, 64, torch.bfloat16))]
    out = parallax.attention(*leaves)
    gradients = torch.autograd.grad(out.sum(), leaves)
    assert all(torch.all(x == 0) for x in (out, *gradients))


def test_autocast_gives_the_autocast_dtype(cuda_backend):
    leaves = [x.requires_grad_() for x in on_device(make_inputs(1, 70, 70, 2, 2, 64))]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = parallax.attention(*leaves)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, parallax.attention(*(x.detach().bfloat16() for x in leaves)))
    assert all(x.dtype == torch.float32 for x in torch.autograd.grad(out.sum(), leaves))


@needs_hopper
@pytest.mark.parametrize(
    ("dtype", "dim", "chosen"),
    [
        (torch.bfloat16, 128, "cuda_sm90"),
        (torch.float16, 64, "cuda_sm90"),
        (torch.bfloat16, 80, "cuda_portable"),
        (torch.float32, 128, "cuda_portable"),
    ],
    ids=str,
)
def test_the_fastest_backend_that_can_is_chosen(dtype, dim, chosen, monkeypatch, capfd):
    monkeypatch.setenv("PLX_LOG", "dispatch")
    parallax.attention(*on_device(make_inputs(1, 70, 70, 2, 2, dim, dtype)))
    assert f"-> {chosen}" in capfd.readouterr().err
