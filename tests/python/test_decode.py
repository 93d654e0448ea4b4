# SPDX-License-Identifier: Apache-2.0
"""parallax.decode and merge_states against the naive definition and against attention."""

from itertools import pairwise, product

import parallax
import pytest
import torch
from naive import assert_close, make_inputs, naive

pytestmark = pytest.mark.usefixtures("poisoned_memory", "seed")

HALF_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 2e-2}
slow = pytest.mark.slow


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def expected_out(inputs, **options):
    return naive(*(x.double() for x in inputs), **options).out


@pytest.mark.parametrize("dtype", HALF_TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("batch", "tq", "tk", "hkv", "hq", "dim", "window"),
    [
        (2, 1, 1, 2, 2, 64, None),
        (2, 1, 137, 2, 2, 64, None),
        (2, 1, 500, 2, 8, 128, None),
        (2, 1, 300, 2, 2, 100, 64),
        (2, 64, 64, 2, 2, 64, None),
        (3, 200, 200, 2, 8, 64, 32),
    ],
)
def test_matches_the_end_aligned_definition(batch, tq, tk, hkv, hq, dim, window, dtype):
    inputs = make_inputs(batch, tq, tk, hq, hkv, dim, dtype)
    out = parallax.decode(*inputs, window=window)
    assert_close("out", out, expected_out(inputs, window=window), HALF_TOLERANCE[dtype])


# B, T, Hkv, Hq, D, window
TRAINING_CASES = [
    (2, 256, 2, 2, 64, None),
    (2, 256, 2, 8, 64, None),
    (2, 200, 2, 2, 128, None),
    (2, 256, 2, 4, 64, 64),
]


# One unit in the last place of the largest result, whose own last rounding may fall either way; in
# bfloat16 as much again for the weights, which some instruction sets round in one of the two calls.
ROUNDING = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("batch", "tokens", "hkv", "hq", "dim", "window"), TRAINING_CASES)
def test_last_queries_equal_the_training_kernel(batch, tokens, hkv, hq, dim, window, dtype):
    q, r, k, v = make_inputs(batch, tokens, tokens, hq, hkv, dim, dtype)
    trained = parallax.attention(q, r, k, v, window=window)
    for count in (1, tokens // 2, tokens):
        out = parallax.decode(q[:, -count:], r[:, -count:], k, v, window=window)
        assert_close(f"last {count}", out, trained[:, -count:], ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("batch", "hkv", "hq", "dim", "window"),
                         [(batch, *rest) for batch, _, *rest in TRAINING_CASES])  # fmt: skip
def test_left_padding_equals_attention_on_the_suffix(batch, hkv, hq, dim, window, dtype):
    q, r, k, v = make_inputs(batch, 200, 200, hq, hkv, dim, dtype)
    starts = torch.full((batch,), 23, dtype=torch.int32)
    k_nan, v_nan = k.clone(), v.clone()
    k_nan[:, :23], v_nan[:, :23] = torch.nan, torch.nan
    one_step = parallax.decode(
        q[:, -1:], r[:, -1:], k_nan, v_nan, cache_starts=starts, window=window
    )
    suffix = parallax.attention(*(x[:, 23:] for x in (q, r, k, v)), window=window)
    assert_close("one step", one_step, suffix[:, -1:], ROUNDING[dtype])
    many = parallax.decode(q, r, k_nan, v_nan, cache_starts=starts, window=window)
    assert_close("all rows", many[:, 23:], suffix, ROUNDING[dtype])
    assert torch.all(many[:, :23] == 0)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_left_padding_may_differ_between_sequences(dtype):
    q, r, k, v = make_inputs(4, 1, 200, 8, 2, 64, dtype)
    starts = torch.randint(0, 200, (4,), dtype=torch.int32)
    for row, start in enumerate(starts.tolist()):
        k[row, :start], v[row, :start] = torch.nan, torch.nan
    out = parallax.decode(q, r, k, v, cache_starts=starts)
    for row, start in enumerate(starts.tolist()):
        alone = (q[row, None], r[row, None], k[row, None, start:], v[row, None, start:])
        assert_close(f"row {row}", out[row, None], parallax.attention(*alone), ROUNDING[dtype])


# B, H, capacity, window, D: one token, r halved as the public kernels' own tests do.
PARITY_CASES = [
    (1, 8, 512, None, 128),
    (1, 8, 1024, None, 128),
    (1, 8, 4096, 256, 128),
    (1, 8, 4096, 64, 128),
    (1, 8, 4096, 100, 128),
    (1, 8, 1000, 128, 128),
    (1, 8, 65, 1024, 128),
    (1, 8, 1024, None, 64),
    (4, 8, 2048, 256, 64),
]


@pytest.mark.parametrize("dtype", HALF_TOLERANCE, ids=str)
@pytest.mark.parametrize(("batch", "heads", "capacity", "window", "dim"), PARITY_CASES)
def test_one_token_over_many_keys(batch, heads, capacity, window, dim, dtype):
    q, r, k, v = make_inputs(batch, 1, capacity, heads, heads, dim, dtype)
    r = r / 2
    out = parallax.decode(q, r, k, v, window=window)
    assert_close("out", out, expected_out((q, r, k, v), window=window), 1e-2)


# B, H, capacity: the stress suite of the public decode kernel, and the sizes of its parity suite.
STRESS_SIZES = [
    *product(((1, 1), (1, 8), (2, 4), (8, 8), (32, 8)), (512, 1000, 4096, 8192, 16384)),
    ((8, 8), 2048),
    ((32, 8), 1024),
]


@slow
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("batch_and_heads", "capacity"), STRESS_SIZES)
def test_one_token_over_many_keys_at_full_size(batch_and_heads, capacity, dim):
    batch, heads = batch_and_heads
    wide = make_inputs(batch, 1, capacity, heads, heads, dim)
    wide[1] /= 2
    for dtype in HALF_TOLERANCE:
        q, r, k, v = (x.to(dtype) for x in wide)
        for window in (None, 64, 130, 256, 1024):
            out = parallax.decode(q, r, k, v, window=window)
            first = max(0, capacity - (window or capacity))
            expected = torch.cat(
                [
                    expected_out(
                        [q[i : i + 1], r[i : i + 1], k[i : i + 1, first:], v[i : i + 1, first:]]
                    )
                    for i in range(batch)
                ]
            )
            assert_close(f"out, {dtype}, window {window}", out, expected, 1e-2)


@slow
@pytest.mark.parametrize("dim", [64, 128])
def test_sixty_calls_give_the_same_bits(dim):
    q, r, k, v = make_inputs(32, 1, 4096, 8, 8, dim, torch.bfloat16)
    first = parallax.decode(q, r, k, v, return_stats=True)
    for i in range(32):
        expected = expected_out([x[i : i + 1] for x in (q, r, k, v)])
        assert_close(f"sequence {i}", first.out[i : i + 1], expected, 1e-2)
    for call in range(59):
        again = parallax.decode(q, r, k, v, return_stats=True)
        same = [torch.equal(a, b) for a, b in zip(again, first, strict=True)]
        assert all(same), f"call {call + 2}"


# group size, batch, capacity with 4 key heads
GROUP_CASES = [
    *product(range(1, 9), (1, 2), (300,)),
    *(pytest.param(*case, marks=slow) for case in product((2, 4, 8), (1, 2, 4), (1024, 4096))),
]


@pytest.mark.parametrize(("group", "batch", "capacity"), GROUP_CASES)
def test_any_group_size(group, batch, capacity):
    inputs = make_inputs(batch, 1, capacity, 4 * group, 4, 64, torch.bfloat16)
    assert_close("out", parallax.decode(*inputs), expected_out(inputs), 1e-2)


@pytest.mark.parametrize(
    ("length", "capacity"), [*product((0, 1, 128, 500, 999, 1024), (1024,)), (2000, 4096)]
)
def test_valid_length_equals_the_sliced_cache(length, capacity):
    q, r, k, v = make_inputs(2, 1, capacity, 8, 2, 64, torch.bfloat16)
    k[1, length:], v[1, length:] = torch.nan, torch.nan
    out = parallax.decode(q, r, k, v, cache_seqlens=int32(capacity, length))
    sliced = parallax.decode(q[1:], r[1:], k[1:, :length], v[1:, :length])
    assert torch.equal(out[1:], sliced)
    assert torch.equal(out[:1], parallax.decode(q[:1], r[:1], k[:1], v[:1]))


def test_window_covering_the_cache_is_no_window():
    q, r, k, v = make_inputs(1, 3, 333, 8, 8, 64)
    unlimited = parallax.decode(q, r, k, v)
    assert torch.equal(parallax.decode(q, r, k, v, window=333), unlimited)
    assert not torch.equal(parallax.decode(q, r, k, v, window=64), unlimited)


def page_layouts(k, v, page_size):
    """The same pages as views of memory laid out as different serving engines do."""
    heads, dim = k.shape[2:]
    pages = [x.reshape(-1, page_size, heads, dim) for x in (k, v)]
    yield "tokens, heads", pages
    both = torch.stack(pages, dim=1)  # [pages, 2, page_size, Hkv, D]
    yield "k and v per page", [both[:, 0], both[:, 1]]
    packed = torch.cat([x.transpose(1, 2) for x in pages], dim=-1)  # [pages, Hkv, page_size, 2 D]
    yield "heads first, k and v packed", [x.transpose(1, 2) for x in packed.split(dim, dim=-1)]


@pytest.mark.parametrize("page_size", [16, 48])
def test_paged_cache_equals_the_contiguous_one_in_any_layout(page_size):
    max_pages = 5
    q, r, k, v = make_inputs(3, 2, max_pages * page_size, 4, 2, 32, torch.bfloat16)
    lengths = int32(1, 2 * page_size, 5 * page_size - 3)
    expected = parallax.decode(q[:, -1:], r[:, -1:], k, v, cache_seqlens=lengths)
    table = torch.randperm(3 * max_pages)
    shuffled = [torch.empty_like(x) for x in (k, v)]
    for memory, x in zip(shuffled, (k, v), strict=True):
        memory.view(-1, page_size, 2, 32)[table] = x.reshape(-1, page_size, 2, 32)
    table = table.reshape(3, max_pages).to(torch.int32)
    for row, length in enumerate(lengths.tolist()):
        table[row, -(-length // page_size) :] = -1
    for name, (k_pages, v_pages) in page_layouts(*shuffled, page_size):
        out = parallax.decode(
            q[:, -1:], r[:, -1:], k_pages, v_pages, cache_seqlens=lengths, page_table=table
        )
        assert torch.equal(out, expected), name


def test_chunked_prefill_equals_the_whole():
    lengths, chunk = [5, 64, 33], 16
    capacity = 80
    q, r, k, v = make_inputs(3, capacity, capacity, 4, 2, 32)
    whole = [
        parallax.attention(*(x[i : i + 1, :length] for x in (q, r, k, v)))[0]
        for i, length in enumerate(lengths)
    ]
    for begin in range(0, max(lengths), chunk):
        counts = [max(0, min(chunk, length - begin)) for length in lengths]
        cu = int32(*(sum(counts[:i]) for i in range(4)))
        rows = [slice(begin, begin + count) for count in counts]
        out = parallax.decode(
            *(torch.cat([x[i, rows[i]] for i in range(3)]) for x in (q, r)),
            k,
            v,
            cache_seqlens=int32(*(min(length, begin + chunk) for length in lengths)),
            cu_seqlens_q=cu,
        )
        expected = torch.cat([whole[i][rows[i]] for i in range(3)])
        assert_close(f"chunk at {begin}", out, expected, 5e-6)


def test_a_sequence_does_not_depend_on_its_batch():
    q, r, k, v = make_inputs(4, 1, 300, 4, 2, 64, torch.bfloat16)
    out = parallax.decode(q, r, k, v, batch_invariant=True)
    for i in range(4):
        alone = parallax.decode(*(x[i : i + 1] for x in (q, r, k, v)), batch_invariant=True)
        assert torch.equal(out[i : i + 1], alone)


def test_merging_states_of_key_ranges_gives_the_state_of_all():
    q, r, k, v = make_inputs(2, 1, 700, 4, 2, 64)
    whole = parallax.decode(q, r, k, v, return_stats=True)
    bounds = [0, 1, 130, 131, 650, 700]
    parts = [
        parallax.decode(q, r, k[:, a:b], v[:, a:b], return_stats=True) for a, b in pairwise(bounds)
    ]
    empty = parallax.decode(q, r, k[:, :0], v[:, :0], return_stats=True)
    merged = parallax.merge_states([*parts, empty])
    assert isinstance(merged, parallax.State)
    for name in merged._fields:
        assert_close(name, getattr(merged, name), getattr(whole, name), 2e-6)


def test_merging_only_empty_states_is_empty():
    q, r, k, v = make_inputs(1, 2, 4, 2, 2, 16)
    empty = parallax.decode(q, r, k[:, :0], v[:, :0], return_stats=True)
    merged = parallax.merge_states([empty, empty])
    assert torch.all(merged.out == 0)
    assert torch.all(merged.out_softmax == 0)
    assert torch.all(merged.lse == -torch.inf)
    assert torch.all(merged.t_mean == 0)
