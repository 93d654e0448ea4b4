# SPDX-License-Identifier: Apache-2.0
"""Meta tensors, which the fake kernels serve, are refused in the words of the C++ checks."""

import parallax
import pytest
import torch
from naive import make_inputs

ops = torch.ops.parallax


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def refusal(function, args, options):
    with pytest.raises(RuntimeError) as info:
        function(*args, **options)
    return str(info.value).splitlines()[0]


def to_meta(value):
    def one(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")

    return torch.utils._pytree.tree_map_only(torch.Tensor, one, value)


def assert_same_refusal(function, *args, **options):
    expected = refusal(function, args, options)
    assert refusal(function, to_meta(args), to_meta(options)) == expected


def inputs(**replaced):
    tensors = dict(zip("qrkv", make_inputs(2, 5, 7, 4, 2, 8), strict=True))
    return [replaced.get(name, lambda x: x)(x) for name, x in tensors.items()]


BAD_INPUTS = {
    "rank of q": {"q": lambda x: x[0, 0]},
    "rank of k": {"k": lambda x: x[None]},
    "packed k": {"k": lambda x: x[0]},
    "length of r": {"r": lambda x: x[:, :4]},
    "batch of k": {"k": lambda x: x[:1]},
    "head size of k": {"k": lambda x: x[..., :4]},
    "length of v": {"v": lambda x: x[:, :6]},
    "head size of v": {"v": lambda x: x[..., :4]},
    "groups": {"q": lambda x: x[:, :, :3], "r": lambda x: x[:, :, :3]},
    "no key head": {"k": lambda x: x[:, :, :0], "v": lambda x: x[:, :, :0]},
    "no query head": {"q": lambda x: x[:, :, :0]},
    "head size 0": {"q": lambda x: x[..., :0]},
    "head size 257": {"q": lambda x: x.new_zeros(1, 1, 1, 257)},
    "dtype of r": {"r": lambda x: x.double()},
    "int32": {"q": lambda x: x.int(), "r": lambda x: x.int()},
    "int64": {"v": lambda x: x.long()},
    "complex": {"k": lambda x: x.to(torch.complex64)},
    "bool": {"k": lambda x: x.bool()},
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_attention_inputs(case):
    assert_same_refusal(parallax.attention, *inputs(**BAD_INPUTS[case]))


@pytest.mark.parametrize(
    "options",
    [
        {"window": 0},
        {"window": 4, "causal": False},
        {"scale": float("nan")},
        {"scale": float("inf")},
        {"scale": 1e39},
    ],
    ids=str,
)
def test_options(options):
    assert_same_refusal(parallax.attention, *inputs(), **options)
    if "causal" not in options:
        assert_same_refusal(parallax.decode, *inputs(), **options)


def test_the_op_refuses_strides():
    q, r, k, v = inputs(k=lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1))
    rest = (None, None, None, True, None)
    assert_same_refusal(ops.attention_forward, q, r, k, v, *rest)
    assert_same_refusal(parallax.decode, q, r, k, v)


@pytest.mark.parametrize(
    ("cu_q", "cu_k"),
    [
        (None, None),
        (int32(0, 5), None),
        (int32(0, 5).long(), int32(0, 7)),
        (int32(0, 5).float(), int32(0, 7)),
        (int32(0, 5)[None], int32(0, 7)),
        (int32(), int32()),
        (int32(0, 3, 5), int32(0, 7)),
        (int32(0, 9, 5, 9)[::2], int32(0, 7)),
    ],
)
def test_cu_seqlens(cu_q, cu_k):
    assert_same_refusal(parallax.varlen_attention, *(x[0] for x in inputs()), cu_q, cu_k)
    if cu_q is not None:
        assert_same_refusal(parallax.varlen_attention, *inputs(), cu_q, cu_k)


def test_backward():
    tensors = inputs()
    saved = ops.attention_forward(*tensors, None, None, None, True, None)
    rest = (None, None, None, True, None, True)
    d_out = torch.ones_like(saved[0])
    for position, change in (
        (0, lambda x: x[:, :4]),
        (0, lambda x: x.bfloat16()),
        (3, lambda x: x[..., :4]),
        (5, lambda x: x[:1]),
        (7, lambda x: x.double()),
        (8, lambda x: x.transpose(1, 2)),
    ):
        arguments = [d_out, *tensors, *saved]
        arguments[position] = change(arguments[position])
        assert_same_refusal(ops.attention_backward, *arguments, *rest)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_seqlens": int32(7, 7).long()},
        {"cache_seqlens": int32(7)},
        {"cache_starts": int32(0, 0, 0)},
        {"cu_seqlens_q": int32(0, 5, 10)},
        {"page_table": int32(0, 1)},
        {"page_table": int32(0, 1, 2)[:, None]},
        {"page_table": int32(0, 1)[:, None].float()},
        {"k_scale": torch.ones(2)},
        {"v_scale": torch.ones(2)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_decode(options):
    assert_same_refusal(parallax.decode, *inputs(), **options)


def test_decode_of_packed_queries():
    q, r, k, v = inputs()
    packed = (q.flatten(0, 1), r.flatten(0, 1))
    assert_same_refusal(parallax.decode, *packed, k, v)
    assert_same_refusal(parallax.decode, *packed, k, v, cu_seqlens_q=int32(0, 1, 2, 10))
    pages = (k[:, :0], v[:, :0])
    table = {"page_table": int32(0, 1)[:, None]}
    assert_same_refusal(parallax.decode, q, r, *pages, **table)


def test_merge_states():
    state = parallax.decode(*inputs(), return_stats=True)
    for bad in (
        state._replace(lse=state.lse[:1]),
        state._replace(t_mean=state.t_mean.double()),
        parallax.State(*(x[:, :, :2] for x in state)),
        state._replace(out=state.out.bfloat16()),
    ):
        assert_same_refusal(parallax.merge_states, [state, bad])
    flat = state._replace(out=state.out[0, 0])
    assert_same_refusal(parallax.merge_states, [flat, state])
    columns = ([x] for x in state[:3])
    assert_same_refusal(ops.merge_states, *columns, [])


def layouts(tensors):
    return [(x.shape, x.dtype, x.stride()) for x in tensors]


def test_what_is_allowed_gives_the_same_shapes():
    for tensors, options in (
        (inputs(), {"window": 3}),
        (inputs(q=lambda x: x[:, :0], r=lambda x: x[:, :0]), {}),
        ([x.double() for x in inputs()], {"scale": 1e39}),
    ):
        real = parallax.attention(*tensors, return_stats=True, **options)
        fake = parallax.attention(*to_meta(tensors), return_stats=True, **options)
        assert layouts(fake) == layouts(real)
        rest = (None, None, options.get("scale"), True, options.get("window"))
        real = ops.attention_forward(*tensors, *rest, return_stats=False)
        fake = ops.attention_forward(*to_meta(tensors), *rest, return_stats=False)
        assert layouts(fake) == layouts(real)


# ---- norm_rope and swiglu ---------------------------------------------------------------------


def norm_rope_inputs(**replaced):
    tensors = {"x": torch.randn(2, 5, 3, 8), "gain": torch.randn(8)}
    tensors |= {"cos": torch.randn(5, 4), "sin": torch.randn(5, 4)}
    options = {"eps": 1e-6, "dtype": torch.float32}
    for name, change in replaced.items():
        target = options if name in options else tensors
        target[name] = change(target[name])
    return [*tensors.values(), *options.values()]


BAD_NORM_ROPE = {
    "rank of x": {"x": lambda x: x[None]},
    "a scalar": {"x": lambda x: x.sum()},
    "dtype of x": {"x": lambda x: x.double()},
    "int32": {"x": lambda x: x.int()},
    "int64": {"gain": lambda x: x.long()},
    "stride of x": {"x": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1)},
    "empty rows": {"x": lambda x: x[..., :0]},
    "nothing to do": dict.fromkeys(("gain", "cos", "sin"), lambda _: None),
    "eps": {"eps": lambda _: -1.0},
    "eps that is no number": {"eps": lambda _: float("inf")},
    "shape of gain": {"gain": lambda x: x[:5]},
    "rank of gain": {"gain": lambda x: x[None]},
    "dtype of gain": {"gain": lambda x: x.double()},
    "no sin": {"sin": lambda _: None},
    "no cos": {"cos": lambda _: None},
    "dtype of sin": {"sin": lambda x: x.bfloat16()},
    "shape of cos": {"cos": lambda x: x[:4]},
    "odd size": {"x": lambda x: x[..., :7], "gain": lambda x: x[:7]},
    "rotated matrix": {"x": lambda x: x[0, 0]},
    "dtype of the result": {"dtype": lambda _: torch.float64},
    "int32 result": {"dtype": lambda _: torch.int32},
    "int64 result": {"dtype": lambda _: torch.int64},
}


@pytest.mark.parametrize("case", BAD_NORM_ROPE)
def test_norm_rope(case):
    assert_same_refusal(ops.norm_rope, *norm_rope_inputs(**BAD_NORM_ROPE[case]))
    if "result" not in case:
        *tensors, eps, _ = norm_rope_inputs(**BAD_NORM_ROPE[case])
        dy = torch.randn(2, 5, 3, 8)
        assert_same_refusal(ops.norm_rope_backward, dy, *tensors, eps)


@pytest.mark.parametrize(
    "change", [lambda x: x[:1], lambda x: x.double(), lambda x: x.mT.contiguous().mT]
)
def test_gradients_of_row_ops(change):
    x, gain, *rest = norm_rope_inputs()[:5]
    assert_same_refusal(ops.norm_rope_backward, change(x), x, gain, *rest)
    assert_same_refusal(ops.swiglu_backward, change(x), x, x)
    for pair in ((x, change(x)), (x[:1], x), (x[..., :0], x[..., :0])):
        assert_same_refusal(ops.swiglu, *pair)
        assert_same_refusal(ops.swiglu_backward, x, *pair)


def test_row_ops_on_two_devices():
    x, gain, *_ = norm_rope_inputs()
    with pytest.raises(RuntimeError, match="gain is on cpu and x on meta; all tensors must be"):
        parallax.norm_rope(x.to("meta"), gain)
    with pytest.raises(RuntimeError, match="up is on meta and gate on cpu; all tensors must be"):
        parallax.swiglu(x, x.to("meta"))
