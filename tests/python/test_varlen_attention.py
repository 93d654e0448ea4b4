# SPDX-License-Identifier: Apache-2.0
"""parallax.varlen_attention against the naive definition, sequence by sequence."""

import random
from itertools import pairwise

import parallax
import pytest
import torch
from naive import assert_close, make_inputs, naive_with_gradients

pytestmark = pytest.mark.usefixtures("poisoned_memory", "seed")

NAMES = ("out", "dq", "dr", "dk", "dv")
slow = pytest.mark.slow


def packed_inputs(total_q, total_k, hq, hkv, dim, dtype, normed=False):
    return [x[0] for x in make_inputs(1, total_q, total_k, hq, hkv, dim, dtype, normed)]


def with_gradients(inputs, d_out, cu_q, cu_k, **options):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    cu_seqlens = [torch.tensor(cu, dtype=torch.int32) for cu in (cu_q, cu_k)]
    out = parallax.varlen_attention(*leaves, *cu_seqlens, **options)
    return [out, *torch.autograd.grad(out, leaves, d_out)]


def per_sequence(attend, inputs, d_out, cu_q, cu_k):
    """Joins what `attend(inputs, d_out)`, over batches of one, gives for each sequence."""
    results = [[] for _ in NAMES]
    for (q0, q1), (k0, k1) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
        rows = (slice(q0, q1), slice(q0, q1), slice(k0, k1), slice(k0, k1))
        sequence = [x[at][None] for x, at in zip(inputs, rows, strict=True)]
        values = attend(sequence, d_out[q0:q1][None])
        for result, value in zip(results, values, strict=True):
            result.append(value[0])
    return [torch.cat(result) for result in results]


def check(inputs, tolerance, cu_q, cu_k=None, **options):
    cu_k = cu_q if cu_k is None else cu_k
    d_out = torch.randn_like(inputs[0])
    actual = with_gradients(inputs, d_out, cu_q, cu_k, **options)
    expected = per_sequence(
        lambda sequence, grad: naive_with_gradients(sequence, grad, **options),
        inputs, d_out, cu_q, cu_k,
    )  # fmt: skip
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert_close(name, a, e, tolerance)
    return d_out, actual


# Hkv, Hq, D, cu_seqlens, window
FIELD_CASES = [
    (2, 2, 64, [0, 15], None),
    (2, 8, 64, [0, 40, 75, 150], None),
    (2, 2, 100, [0, 15, 70, 170], None),
    (2, 2, 64, [0, 111], 16),
    (2, 8, 100, [0, 50, 90, 130], 32),
    pytest.param(2, 8, 64, [0, 256, 500, 1000], None, marks=slow),
    pytest.param(2, 2, 100, [0, 15, 100, 300, 1200, 2000], None, marks=slow),
    pytest.param(2, 8, 100, [0, 256, 500, 1000], 32, marks=slow),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("hkv", "hq", "dim", "cu", "window"), FIELD_CASES)
def test_half_precision_matches_the_definition(hkv, hq, dim, cu, window, dtype, tolerance):
    inputs = packed_inputs(cu[-1], cu[-1], hq, hkv, dim, dtype)
    check(inputs, tolerance, cu, window=window)


# Hq, Hkv, longest, D, window; eight lengths, 1 and the longest among them.
NORMED_CASES = [
    (4, 4, 128, 128, None),
    (4, 4, 128, 64, None),
    (8, 1, 96, 64, None),
    (8, 2, 128, 128, 48),
    pytest.param(8, 8, 1024, 128, None, marks=slow),
    pytest.param(8, 8, 1024, 64, None, marks=slow),
    pytest.param(16, 4, 512, 128, None, marks=slow),
    pytest.param(32, 1, 512, 64, None, marks=slow),
    pytest.param(8, 8, 1024, 128, 256, marks=slow),
    pytest.param(8, 2, 512, 128, 128, marks=slow),
    pytest.param(16, 4, 512, 128, 64, marks=slow),
]


@pytest.mark.parametrize(("hq", "hkv", "longest", "dim", "window"), NORMED_CASES)
def test_normed_inputs_equal_the_definition_and_one_call_per_sequence(
    hq, hkv, longest, dim, window, seed
):
    generator = random.Random(seed)
    lengths = [1, longest, *(generator.randint(1, longest) for _ in range(6))]
    generator.shuffle(lengths)
    cu = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    inputs = packed_inputs(cu[-1], cu[-1], hq, hkv, dim, torch.bfloat16, normed=True)
    d_out, actual = check(inputs, 1e-2, cu, window=window)

    def attend(sequence, grad):
        leaves = [x.detach().clone().requires_grad_() for x in sequence]
        out = parallax.attention(*leaves, window=window)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    for name, a, e in zip(NAMES, actual, per_sequence(attend, inputs, d_out, cu, cu), strict=True):
        assert torch.equal(a, e), f"{name} differs from one call per sequence"


def test_query_and_key_lengths_may_differ_and_be_zero():
    cu_q, cu_k = [0, 3, 3, 10, 14, 16], [0, 9, 12, 12, 16, 33]
    inputs = packed_inputs(16, 33, 4, 2, 24, torch.float32)
    check(inputs, 2e-5, cu_q, cu_k)
    check(inputs, 2e-5, cu_q, cu_k, causal=False)
    check(inputs, 2e-5, cu_q, cu_k, window=5)


def test_statistics_are_packed_like_the_queries():
    cu = [0, 5, 12]
    inputs = packed_inputs(12, 12, 4, 2, 16, torch.float32)
    cu_seqlens = torch.tensor(cu, dtype=torch.int32)
    state = parallax.varlen_attention(*inputs, cu_seqlens, cu_seqlens, return_stats=True)
    assert state.lse.shape == state.t_mean.shape == (4, 12)
    dense = parallax.attention(*(x[None, 5:12] for x in inputs), return_stats=True)
    assert torch.equal(state.lse[:, 5:], dense.lse[0])
    assert torch.equal(state.t_mean[:, 5:], dense.t_mean[0])
    assert torch.equal(state.out_softmax[5:], dense.out_softmax[0])
