# SPDX-License-Identifier: Apache-2.0
"""parallax.attention, outputs and gradients, against the naive definition in float64."""

import os
import subprocess
import sys

import parallax
import pytest
import torch
from naive import (
    assert_close,
    errors,
    make_inputs,
    naive,
    naive_with_gradients,
    plain_loops,
)
from support import REPO_ROOT

pytestmark = pytest.mark.usefixtures("poisoned_memory", "seed")

NAMES = ("out", "dq", "dr", "dk", "dv")
HALF_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 2e-2}
slow = pytest.mark.slow


def with_gradients(inputs, d_out, attend=parallax.attention, **options):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = attend(*leaves, **options)
    return [out, *torch.autograd.grad(out, leaves, d_out)]


def check(inputs, tolerance, attend=parallax.attention, **options):
    d_out = torch.randn_like(inputs[0])
    actual = with_gradients(inputs, d_out, attend, **options)
    expected = naive_with_gradients(inputs, d_out, **options)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert a.dtype == inputs[0].dtype
        assert_close(name, a, e, tolerance)


# (B, T, Hkv, Hq, D), options. Each full size has a smaller twin with the same head size, scale and
# window.
FIELD_CASES = [
    ((1, 63, 1, 1, 64), {"scale": 1.0}),
    ((3, 111, 2, 2, 100), {"scale": 1.0}),
    ((1, 136, 2, 8, 60), {"scale": 0.1}),
    ((1, 136, 1, 4, 128), {"scale": 0.1}),
    ((1, 63, 1, 1, 64), {"window": 16}),
    ((3, 111, 2, 2, 100), {"window": 32}),
    ((1, 136, 1, 4, 128), {"window": 64}),
    ((1, 288, 1, 2, 64), {"window": 256}),
    ((1, 260, 1, 1, 64), {"window": 200}),
]
FULL_SIZE_FIELD_CASES = [
    ((3, 1024, 2, 8, 60), {"scale": 0.1}),
    ((3, 1024, 2, 8, 128), {"scale": 0.1}),
    ((4, 2048, 2, 8, 64), {"scale": 0.1}),
    ((3, 1024, 2, 8, 128), {"window": 64}),
    ((2, 2048, 2, 8, 64), {"window": 256}),
    ((2, 1024, 2, 2, 64), {"window": 200}),
]


@pytest.mark.parametrize("dtype", HALF_TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("shape", "options"),
    [*FIELD_CASES, *(pytest.param(*case, marks=slow) for case in FULL_SIZE_FIELD_CASES)],
)
def test_half_precision_matches_the_definition(shape, options, dtype):
    batch, tokens, hkv, hq, dim = shape
    inputs = make_inputs(batch, tokens, tokens, hq, hkv, dim, dtype)
    check(inputs, HALF_TOLERANCE[dtype], **options)


@pytest.mark.parametrize(("shape", "options"), FIELD_CASES)
def test_float32_errs_at_most_twice_as_much_as_plain_loops(shape, options):
    batch, tokens, hkv, hq, dim = shape
    inputs = make_inputs(batch, tokens, tokens, hq, hkv, dim)
    d_out = torch.randn_like(inputs[0])
    actual = with_gradients(inputs, d_out, **options)
    expected = naive_with_gradients(inputs, d_out, **options)
    plain = plain_loops(inputs, d_out, **options)
    ulp = torch.finfo(torch.float32).eps
    for name, a, e, p in zip(NAMES, actual, expected, plain, strict=True):
        rms, peak = errors(p, e)
        assert max(rms, peak) < 1e-4, f"plain loops, {name}"
        assert_close(name, a, e, (2 * rms + 2 * ulp, 2 * peak + 2 * ulp))


# (B, Hq, Hkv, T, D), window; q, r and k with unit rms, as in a model with head norms.
NORMED_CASES = [
    ((1, 1, 1, 128, 64), None),
    ((1, 1, 1, 128, 128), None),
    ((1, 2, 2, 200, 64), None),
    ((1, 8, 2, 128, 128), None),
    ((1, 8, 1, 130, 64), None),
    ((1, 4, 1, 150, 128), 128),
    ((1, 8, 2, 128, 128), 64),
    pytest.param((2, 8, 8, 1024, 64), None, marks=slow),
    pytest.param((2, 8, 8, 1024, 128), None, marks=slow),
    pytest.param((1, 16, 4, 512, 128), None, marks=slow),
    pytest.param((1, 32, 1, 1024, 64), None, marks=slow),
    pytest.param((2, 8, 8, 1024, 128), 256, marks=slow),
    pytest.param((2, 8, 2, 512, 128), 128, marks=slow),
    pytest.param((1, 16, 4, 512, 128), 64, marks=slow),
]


@pytest.mark.parametrize(("shape", "window"), NORMED_CASES)
def test_normed_inputs_in_bfloat16(shape, window):
    batch, hq, hkv, tokens, dim = shape
    inputs = make_inputs(batch, tokens, tokens, hq, hkv, dim, torch.bfloat16, normed=True)
    check(inputs, 1e-2, window=window)


@pytest.mark.parametrize("group", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_any_group_size_and_unequal_lengths(group, causal):
    check(make_inputs(2, 9, 33, 2 * group, 2, 24), 2e-5, causal=causal)


@pytest.mark.parametrize("dim", [1, 7, 65, 256])
def test_any_head_size(dim):
    check(make_inputs(1, 20, 20, 2, 1, dim), 5e-5)


def test_more_queries_than_keys_gives_zero_where_nothing_is_visible():
    inputs = make_inputs(1, 8, 5, 2, 2, 16)
    leaves = [x.requires_grad_() for x in inputs]
    state = parallax.attention(*leaves, return_stats=True)
    assert torch.all(state.out[:, :3] == 0)
    assert torch.all(state.lse[:, :, :3] == -torch.inf)
    assert torch.all(state.t_mean[:, :, :3] == 0)
    gradients = torch.autograd.grad(state.out.sum(), leaves)
    assert all(torch.isfinite(g).all() for g in gradients)
    check(inputs, 2e-5)


def test_statistics_are_the_definition():
    inputs = make_inputs(2, 20, 30, 4, 2, 16)
    state = parallax.attention(*inputs, scale=0.3, window=9, return_stats=True)
    expected = naive(*(x.double() for x in inputs), scale=0.3, window=9)
    for name in state._fields:
        assert_close(name, getattr(state, name), getattr(expected, name), 1e-5)
    assert state.lse.dtype == state.t_mean.dtype == torch.float32
    assert state.lse.shape == state.t_mean.shape == (2, 4, 20)


def test_zero_probe_is_softmax_attention():
    q, r, k, v = make_inputs(2, 33, 33, 4, 2, 32)
    out = parallax.attention(q, torch.zeros_like(r), k, v)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True
    )
    assert_close("out", out, expected.transpose(1, 2), 1e-6)


def test_one_visible_key_gives_its_value_exactly():
    q, r, k, v = make_inputs(1, 7, 7, 2, 2, 32, torch.bfloat16)
    assert torch.equal(parallax.attention(q, 100 * r, k, v, window=1), v)
    assert torch.equal(parallax.attention(q, r, k, v)[:, 0], v[:, 0])


def test_future_keys_change_nothing():
    q, r, k, v = make_inputs(1, 70, 70, 2, 1, 32)
    out = parallax.attention(q, r, k, v)
    k[:, 40:], v[:, 40:] = 1e4, -1e4
    assert torch.equal(parallax.attention(q, r, k, v)[:, :40], out[:, :40])


def test_default_scale_is_the_inverse_root_of_the_head_size():
    for dim in (1, 60, 64, 100, 128):
        inputs = make_inputs(1, 9, 9, 2, 1, dim)
        explicit = parallax.attention(*inputs, scale=dim**-0.5)
        assert torch.equal(parallax.attention(*inputs), explicit)


def test_window_of_the_whole_length_is_no_window():
    inputs = make_inputs(1, 50, 50, 2, 1, 32)
    assert torch.equal(parallax.attention(*inputs, window=50), parallax.attention(*inputs))


def test_each_call_returns_fresh_memory():
    inputs = make_inputs(1, 9, 9, 2, 1, 32)
    first = parallax.attention(*inputs)
    kept = first.clone()
    second = parallax.attention(*(x + 1 for x in inputs))
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)


def test_nan_in_a_visible_value_propagates():
    q, r, k, v = make_inputs(1, 9, 9, 1, 1, 32)
    v[:, 3, :, 5] = torch.nan
    out = parallax.attention(q, r, k, v)
    assert torch.isnan(out[:, 3:, :, 5]).all()
    assert torch.isfinite(out[..., :5]).all()


@pytest.mark.parametrize("tokens", [65, 100, 1000])
def test_ragged_lengths_have_no_nan(tokens):
    inputs = make_inputs(1, 3, tokens, 8, 8, 128, torch.bfloat16)
    assert torch.isfinite(parallax.attention(*inputs)).all()


def test_strided_inputs_equal_contiguous_ones():
    inputs = make_inputs(2, 17, 17, 4, 2, 32)
    d_out = torch.randn_like(inputs[0])
    expected = with_gradients(inputs, d_out)
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    padded = [torch.nn.functional.pad(x, (1, 2))[..., 1:-2] for x in inputs]
    dim_outside = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in inputs]
    for views in (heads_first, padded, dim_outside):
        leaves = [x.requires_grad_() for x in views]
        out = parallax.attention(*leaves)
        gradients = torch.autograd.grad(out, leaves, d_out)
        for name, a, e in zip(NAMES, [out, *gradients], expected, strict=True):
            assert torch.equal(a, e), name


def test_repeats_and_thread_counts_give_the_same_bits():
    inputs = make_inputs(2, 150, 150, 4, 2, 64, torch.bfloat16)
    d_out = torch.randn_like(inputs[0])
    num_threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3, num_threads):
            torch.set_num_threads(count)
            runs.append(with_gradients(inputs, d_out))
    finally:
        torch.set_num_threads(num_threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("sizes", [(0, 5, 5), (2, 0, 5), (2, 5, 0)], ids=str)
def test_empty_batches_and_sequences(sizes):
    batch, tq, tk = sizes
    leaves = [x.requires_grad_() for x in make_inputs(batch, tq, tk, 4, 2, 16)]
    out = parallax.attention(*leaves)
    assert out.shape == (batch, tq, 4, 16)
    gradients = torch.autograd.grad(out.sum(), leaves)
    assert all(torch.all(x == 0) for x in (out, *gradients))


def test_the_library_starts_no_threads_of_its_own():
    script = """
import os, torch, parallax
def count(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads(2)
x = torch.randn(1, 256, 4, 32)
(x[0, 0] @ x[0, 0].mT.contiguous(), torch.randn(2**20).exp())  # Torch starts its own threads
before = count()
parallax.attention(x, x, x, x)
assert count() == before, (before, count())
"""
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT / "python")}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
