# SPDX-License-Identifier: Apache-2.0
"""CUDA tensors at the limits: long sequences, more than 2^31 elements, and what is refused."""

import re

import parallax
import pytest
import torch
from cuda_support import (
    DEVICE,
    assert_rows_close,
    equal_bits,
    int32,
    needs_hopper,
    needs_memory,
    on_device,
    skip_module_without_cuda,
)
from naive import make_inputs, naive, naive_with_gradients

skip_module_without_cuda()

pytestmark = pytest.mark.usefixtures("seed")

TOLERANCE = (6e-3, 4e-2)  # of bfloat16 results, rows in units of their largest element


def randn(*shape):
    return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)


@pytest.fixture
def free_memory():
    """Large tensors of one test are gone before the next."""
    yield
    torch.cuda.empty_cache()


def check_row(out, inputs, at, window=None):
    """One row of causal attention over equal numbers of queries and keys."""
    batch, row, head = at
    q, r, k, v = inputs
    key_head = head // (q.shape[2] // k.shape[2])
    first = 0 if window is None else max(0, row - window + 1)
    query = [x[batch, row, head][None, None, None] for x in (q, r)]
    keys = [x[batch, first : row + 1, key_head][None, :, None] for x in (k, v)]
    expected = naive(*(x.double().cpu() for x in (*query, *keys))).out[0, 0, 0]
    assert_rows_close(f"row {at}", out[at], expected, TOLERANCE)


# ---- large ------------------------------------------------------------------------------------


def test_a_sequence_of_131072_tokens(cuda_backend, free_memory):
    tokens = 131072
    inputs = [randn(1, tokens, 1, 64) for _ in range(4)]
    out = parallax.attention(*inputs)
    assert torch.isfinite(out).all()
    for row in (0, 1, 127, 65535, 65536, 100000, tokens - 2, tokens - 1):
        check_row(out, inputs, (0, row, 0))


# q has 2^31 elements and some: an index in 32 bits ends within the last sequence.
LARGE = {"batch": 8, "tokens": 16400, "heads": 128, "heads_kv": 8, "dim": 128}
WINDOW = 64


def large_inputs():
    batch, tokens, heads, heads_kv, dim = LARGE.values()
    inputs = [randn(batch, tokens, count, dim) for count in (heads, heads, heads_kv, heads_kv)]
    assert inputs[0].numel() > 2**31
    return inputs


@needs_memory(40)
def test_more_than_two_to_the_31_elements(cuda_backend, free_memory):
    inputs = large_inputs()
    with torch.no_grad():
        state = parallax.attention(*inputs, window=WINDOW, return_stats=True)
    last = LARGE["tokens"] - 1
    rows = [(0, 0, 0), (0, last, 127), (3, 8191, 64), (4, 1, 1), (7, 0, 127), (7, 16383, 127),
            (7, last - 1, 5), (7, last, 0), (7, last, 127)]  # fmt: skip
    for at in rows:
        check_row(state.out, inputs, at, WINDOW)
    assert torch.isfinite(state.lse).all() and torch.isfinite(state.t_mean).all()


@needs_memory(60)
def test_gradients_of_more_than_two_to_the_31_elements(cuda_backend, free_memory):
    inputs = large_inputs()
    d_out = randn(*inputs[0].shape)
    leaves = [x.requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(parallax.attention(*leaves, window=WINDOW), leaves, d_out)
    group = LARGE["heads"] // LARGE["heads_kv"]
    # The queries j to j + window - 1 see key j, and together window - 1 keys before it.
    for batch, key, key_head in ((0, WINDOW, 0), (7, 9000, 3), (7, LARGE["tokens"] - WINDOW, 7)):
        queries, keys = slice(key, key + WINDOW), slice(key - WINDOW + 1, key + WINDOW)
        heads = slice(key_head * group, (key_head + 1) * group)
        at = [(batch, queries, heads)] * 2 + [(batch, keys, slice(key_head, key_head + 1))] * 2
        local = [x.detach()[where][None].cpu() for x, where in zip(inputs, at, strict=True)]
        grad = d_out[at[0]][None].cpu()
        _, dq, dr, dk, dv = naive_with_gradients(local, grad, window=WINDOW)
        expected = {"dq": dq[0], "dr": dr[0], "dk": dk[0, WINDOW - 1], "dv": dv[0, WINDOW - 1]}
        actual = [gradients[0][at[0]], gradients[1][at[1]],
                  *(x[batch, key, key_head][None] for x in gradients[2:])]  # fmt: skip
        for (name, truth), result in zip(expected.items(), actual, strict=True):
            assert_rows_close(name, result, truth, (1e-2, 1e-1), smallest=(1.0, 0.1))


@needs_memory(40)
def test_a_cache_of_more_than_two_to_the_31_elements(cuda_backend, free_memory):
    batch, capacity, heads, dim = 9, 262144, 8, 128
    k, v = (randn(batch, capacity, heads, dim) for _ in range(2))
    assert k.numel() > 2**31
    q, r = (randn(batch, 1, heads, dim) for _ in range(2))
    lengths = [capacity, 1, 1000, 70000, 5, 3, 2, capacity, capacity - 1]
    out = parallax.decode(q, r, k, v, cache_seqlens=int32(*lengths))
    for row, head in ((0, 0), (1, 3), (3, 7), (7, 7), (8, 0), (8, 7)):
        keys = [x[row, : lengths[row], head][None, :, None].double().cpu() for x in (k, v)]
        query = [x[row, :, head][None, :, None].double().cpu() for x in (q, r)]
        expected = naive(*query, *keys).out[0, 0, 0]
        assert_rows_close(f"row {row}, head {head}", out[row, 0, head], expected, TOLERANCE)


# ---- refused ----------------------------------------------------------------------------------


@pytest.fixture
def usable_afterwards():
    """The next call after a refused one gives what it gave before."""
    inputs = on_device(make_inputs(1, 100, 100, 2, 1, 64, torch.bfloat16))
    before = parallax.attention(*inputs, return_stats=True)
    yield
    torch.cuda.synchronize()
    assert equal_bits(parallax.attention(*inputs, return_stats=True), before)


def refusal(function, *args, **options):
    """The first line of the message, which may name the device."""
    with pytest.raises(RuntimeError) as caught:
        function(*args, **options)
    return str(caught.value).splitlines()[0]


def without_device(message):
    return re.sub(r"\b(cpu|cuda)(:\d+)?\b", "DEVICE", message)


def assert_same_words(function, tensors, changes=None, **options):
    """The call on the CPU and that on the device are refused alike."""
    changes = changes or {}
    moved = {k: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for k, x in options.items()}
    on_cpu = refusal(function, *changed(changes, tensors), **options)
    on_cuda = refusal(function, *changed(changes, on_device(tensors)), **moved)
    assert without_device(on_cuda) == without_device(on_cpu)


def changed(changes, tensors):
    named = dict(zip("qrkv", tensors, strict=True))
    return [changes[name](x) if name in changes else x for name, x in named.items()]


BAD_TENSORS = [
    {"q": lambda x: x[0, 0]},
    {"q": lambda x: x[None]},
    {"r": lambda x: x[:, :4]},
    {"k": lambda x: x[:1]},
    {"k": lambda x: x[..., :4]},
    {"v": lambda x: x[:, :6]},
    {"q": lambda x: x[:, :, :3], "r": lambda x: x[:, :, :3]},
    {"k": lambda x: x[:, :, :0], "v": lambda x: x[:, :, :0]},
    {"r": lambda x: x.double()},
    {"v": lambda x: x.half()},
    {"q": lambda x: x.int()},
    {"v": lambda x: x.long()},
    {"k": lambda x: x.to("meta")},
]


@pytest.mark.parametrize("changes", BAD_TENSORS)
def test_bad_tensors_are_refused_in_the_same_words(changes, usable_afterwards):
    assert_same_words(parallax.attention, make_inputs(2, 5, 7, 4, 2, 8), changes)


BAD_OPTIONS = [
    {"window": 4, "causal": False},
    {"window": 0},
    {"scale": float("nan")},
    {"scale": 1e39},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_bad_options_are_refused_in_the_same_words(options, usable_afterwards):
    assert_same_words(parallax.attention, make_inputs(2, 5, 7, 4, 2, 8), **options)


BAD_DECODE = [
    {"cache_seqlens": torch.tensor([7, 7])},
    {"cache_seqlens": torch.tensor([7], dtype=torch.int32)},
    {"cu_seqlens_q": torch.tensor([0, 5, 10], dtype=torch.int32)},
    {"page_table": torch.tensor([0, 1], dtype=torch.int32)},
    {"k_scale": torch.ones(2)},
    {"window": 0},
]


@pytest.mark.parametrize("options", BAD_DECODE, ids=lambda options: next(iter(options)))
def test_bad_decode_arguments_are_refused_in_the_same_words(options, usable_afterwards):
    assert_same_words(parallax.decode, make_inputs(2, 5, 7, 4, 2, 8), **options)


@pytest.mark.parametrize("name", ["q", "r", "k", "v"])
def test_tensors_on_two_devices(name, usable_afterwards):
    tensors = on_device(make_inputs(2, 5, 7, 4, 2, 64, torch.bfloat16))
    mixed = changed({name: lambda x: x.cpu()}, tensors)
    assert "all tensors must be on one device" in refusal(parallax.attention, *mixed)


def test_lengths_on_another_device(usable_afterwards):
    q, r, k, v = on_device(make_inputs(1, 7, 7, 2, 2, 64, torch.bfloat16))
    lengths = int32(0, 3, 7)
    packed = [x[0] for x in (q, r, k, v)]
    message = refusal(parallax.varlen_attention, *packed, lengths, lengths.cpu())
    assert "all tensors must be on one device" in message
    message = refusal(parallax.decode, q, r, k, v, cache_seqlens=int32(7).cpu())
    assert "all tensors must be on one device" in message


def test_merging_states_of_two_devices(usable_afterwards):
    inputs = make_inputs(1, 1, 7, 2, 2, 64, torch.bfloat16)
    states = [parallax.decode(*x, return_stats=True) for x in (inputs, on_device(inputs))]
    assert "all tensors must be on one device" in refusal(parallax.merge_states, states)


def test_float64_has_no_kernel(usable_afterwards):
    tensors = on_device(make_inputs(1, 5, 5, 2, 2, 64, torch.float64))
    with pytest.raises(RuntimeError, match=r"(?s)no backend supports this call.*float64"):
        parallax.attention(*tensors)


def test_a_cpu_backend_cannot_be_forced_on_device_tensors(usable_afterwards, monkeypatch):
    tensors = on_device(make_inputs(1, 5, 5, 2, 2, 64, torch.bfloat16))
    monkeypatch.setenv("PLX_BACKEND", "cpu")
    assert "forces the backend 'cpu', which cannot run it" in refusal(parallax.attention, *tensors)


def misaligned(x):
    """The same values one element into their memory."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    memory[1:] = x.flatten()
    return memory[1:].view(x.shape)


@needs_hopper
@pytest.mark.parametrize(
    ("dim", "dtype", "change", "reason"),
    [
        (128, torch.bfloat16, misaligned, "address is not a multiple of 16 bytes"),
        (128, torch.bfloat16, lambda x: x[:, :1].expand_as(x), "stride is 0 or negative"),
        (80, torch.bfloat16, lambda x: x, "head_dim 80 is not built"),
        (128, torch.float32, lambda x: x, "dtype float32 is not built"),
    ],
    ids=["address", "stride", "head size", "dtype"],
)
def test_what_the_hopper_kernels_cannot_do(
    dim, dtype, change, reason, usable_afterwards, monkeypatch
):
    tensors = on_device(make_inputs(1, 40, 40, 2, 2, dim, dtype))
    tensors[2] = change(tensors[2])
    expected = naive(*(x.double().cpu() for x in tensors)).out
    assert_rows_close("default", parallax.attention(*tensors), expected, TOLERANCE)
    monkeypatch.setenv("PLX_BACKEND", "cuda_sm90")
    message = refusal(parallax.attention, *tensors)
    assert "forces the backend 'cuda_sm90', which cannot run it" in message
    assert reason in message


@pytest.mark.parametrize("name", ["q", "r", "k", "v"])
def test_any_alignment_of_the_element_is_read(name, cuda_backend):
    tensors = on_device(make_inputs(1, 70, 70, 2, 2, 64, torch.bfloat16))
    expected = naive(*(x.double().cpu() for x in tensors)).out
    out = parallax.attention(*changed({name: misaligned}, tensors))
    assert_rows_close("out", out, expected, TOLERANCE)


def test_out_of_memory_is_an_error_like_others(usable_afterwards, free_memory):
    large = randn(1, 2**14, 16, 128)  # 64 MiB
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 2**24
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        with pytest.raises(RuntimeError):
            parallax.attention(large, large, large, large, window=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.equal(parallax.attention(large, large, large, large, window=1), large)
