# SPDX-License-Identifier: Apache-2.0
"""What is not allowed is refused with a message that names it, whichever way the op is called."""

import parallax
import pytest
import torch
from naive import make_inputs


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def inputs(**replaced):
    names = ("q", "r", "k", "v")
    tensors = dict(zip(names, make_inputs(2, 5, 7, 4, 2, 8), strict=True))
    for name, change in replaced.items():
        tensors[name] = change(tensors[name])
    return [tensors[name] for name in names]


def at_odd_address(x):
    """The same values one byte into their memory."""
    memory = bytearray(1) + x.numpy().tobytes()
    return torch.frombuffer(memory, dtype=x.dtype, offset=1).view(x.shape)


def refused(pattern, function, *args, **options):
    with pytest.raises(RuntimeError, match=pattern):
        function(*args, **options)


@pytest.mark.parametrize(
    ("replaced", "pattern"),
    [
        ({"q": lambda x: x[0, 0]}, "q has 2 dimensions"),
        ({"q": lambda x: x[None]}, "q has 5 dimensions"),
        ({"q": lambda x: x.sum()}, "q has 0 dimensions"),
        ({"r": lambda x: x[:, :4]}, r"r has shape \[2, 4, 4, 8\]; it must be \[2, 5, 4, 8\]"),
        ({"r": lambda x: x[:, :, :2]}, r"r has shape \[2, 5, 2, 8\]"),
        ({"k": lambda x: x[:1]}, r"k has shape \[1, 7, 2, 8\]"),
        ({"k": lambda x: x[..., :4]}, r"k has shape \[2, 7, 2, 4\]"),
        ({"v": lambda x: x[:, :6]}, r"v has shape \[2, 6, 2, 8\]"),
        ({"v": lambda x: x[..., :4]}, r"v has shape \[2, 7, 2, 4\]"),
        ({"q": lambda x: x[:, :, :3], "r": lambda x: x[:, :, :3]}, "q has 3 heads and k has 2"),
        ({"k": lambda x: x[:, :, :0], "v": lambda x: x[:, :, :0]}, "k has 0"),
        ({"r": lambda x: x.double()}, "r is float64; it must be float32"),
        ({"k": lambda x: x.bfloat16()}, "k is bfloat16; it must be float32"),
        ({"v": lambda x: x.half()}, "v is float16; it must be float32"),
        ({"q": lambda x: x.int()}, "q is int32"),
        ({"v": lambda x: x.long()}, "v is int64; it must be float32"),
        ({"k": lambda x: x.to(torch.complex64)}, "k is complex64"),
        ({"k": lambda x: x.to_sparse()}, "Sparse"),
        ({"v": at_odd_address}, "v begins at an address that is not a multiple of 4 bytes"),
    ],
)
def test_shapes_and_dtypes(replaced, pattern):
    refused(pattern, parallax.attention, *inputs(**replaced))


@pytest.mark.parametrize("dim", [0, 257])
def test_head_sizes_outside_1_to_256(dim):
    refused(f"head size {dim}; it must be 1 to 256", parallax.attention,
            *make_inputs(1, 2, 2, 1, 1, dim))  # fmt: skip


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"window": 4, "causal": False}, "a window needs the causal mask"),
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"window": -1}, "window is -1; it must be at least 1"),
        ({"scale": float("nan")}, "scale is nan; it must be finite"),
        ({"scale": float("inf")}, "scale is inf; it must be finite"),
        ({"scale": 1e39}, r"scale is 1e\+39 and q is float32; it must be finite in float32"),
    ],
)
def test_options(options, pattern):
    refused(pattern, parallax.attention, *inputs(), **options)


def test_unknown_arguments_and_wrong_types():
    with pytest.raises(TypeError):
        parallax.attention(*inputs(), dropout=0.1)
    refused("window", parallax.attention, *inputs(), window=2.5)


def refused_type(pattern, function, *args, **options):
    with pytest.raises(TypeError, match=pattern):
        function(*args, **options)


def test_a_scale_that_is_a_tensor_would_lose_its_gradient():
    scale = torch.tensor(0.3, requires_grad=True)
    pattern = "scale is of type Tensor, and no gradient flows through it"
    refused_type("^attention: " + pattern, parallax.attention, *inputs(), scale=scale)
    refused_type("^decode: " + pattern, parallax.decode, *inputs(), scale=scale)
    packed = [x[0] for x in inputs()]
    lengths = (int32(0, 5), int32(0, 7))
    refused_type(pattern, parallax.varlen_attention, *packed, *lengths, scale=scale)


@pytest.mark.parametrize("position", range(4))
def test_an_argument_that_is_no_tensor_is_named(position):
    def replaced(tensors):
        return [[1] if index == position else x for index, x in enumerate(tensors)]

    name = "qrkv"[position]
    pattern = rf"attention: {name} is of type list; it must be a torch\.Tensor"
    refused_type("^" + pattern, parallax.attention, *replaced(inputs()))
    packed = replaced(x[0] for x in inputs())
    refused_type("^varlen_" + pattern, parallax.varlen_attention, *packed, None, None)
    name += "_cache" if name in "kv" else ""
    refused_type(f"^decode: {name} is of type list", parallax.decode, *replaced(inputs()))


def test_a_missing_tensor_and_a_list_of_lengths_are_named():
    refused_type("attention: r is of type NoneType", parallax.attention, *inputs(r=lambda _: None))
    lengths = ([0, 5], int32(0, 7))
    packed = [x[0] for x in inputs()]
    refused_type("cu_seqlens_q is of type list", parallax.varlen_attention, *packed, *lengths)
    refused_type("cache_seqlens is of type list", parallax.decode, *inputs(), cache_seqlens=[7, 7])


def test_merge_states_names_what_is_no_state():
    state = parallax.decode(*inputs(), return_stats=True)
    refused_type("states is of type Tensor", parallax.merge_states, state.out)
    refused_type(r"states\[0\] is of type Tensor; it must be a State", parallax.merge_states, state)
    bad = state._replace(lse=[1.0])
    refused_type(r"states\[1\]\.lse is of type list", parallax.merge_states, [state, bad])


def test_the_op_refuses_a_stride_that_the_python_function_copies():
    q, r, k, v = inputs()
    k = k.movedim(-1, 0).contiguous().movedim(0, -1)
    parallax.attention(q, r, k, v)
    op = torch.ops.parallax.attention_forward
    pattern = "k has stride 28 in its last dimension; it must be 1"
    refused(pattern, op, q, r, k, v, None, None, None, True, None)


@pytest.mark.parametrize("name", ["q", "r", "k", "v"])
def test_tensors_on_several_devices(name):
    refused(
        "all tensors must be on one device",
        parallax.attention,
        *inputs(**{name: lambda x: x.to("meta")}),
    )


@pytest.mark.parametrize(
    ("cu_q", "cu_k", "pattern"),
    [
        (int32(0, 5).long(), int32(0, 7), "cu_seqlens_q is int64; it must be int32"),
        (int32(0, 5).float(), int32(0, 7), "cu_seqlens_q is float32; it must be int32"),
        (int32(1, 5), int32(0, 7), r"cu_seqlens_q\[0\] is 1; it must be 0"),
        (int32(0, 4), int32(0, 7), "cu_seqlens_q ends at 4; it must end at 5"),
        (int32(0, 5), int32(0, 8), "cu_seqlens_k ends at 8; it must end at 7"),
        (int32(0, 3, 2, 5), int32(0, 1, 2, 7), r"cu_seqlens_q\[2\] is 2 after 3"),
        (int32(0, 3, 5), int32(0, 7), "the same number"),
        (int32(0, 5)[None], int32(0, 7), r"cu_seqlens_q has shape \[1, 2\]"),
        (int32(), int32(), "cu_seqlens_q"),
        (None, int32(0, 7), "cu_seqlens_q is missing"),
        (int32(0, 9, 5, 9)[::2], int32(0, 7), "stride 2"),
        (int32(0, 5), int32(0, 7).to("meta"), "all tensors must be on one device"),
    ],
)
def test_cu_seqlens(cu_q, cu_k, pattern):
    tensors = [x[0] for x in inputs()]
    refused(pattern, parallax.varlen_attention, *tensors, cu_q, cu_k)


def test_cu_seqlens_need_packed_tensors_and_packed_tensors_need_them():
    refused("cu_seqlens_q", parallax.varlen_attention, *inputs(), int32(0, 5), int32(0, 7))
    refused("cu_seqlens_q is missing", parallax.attention, *(x[0] for x in inputs()))


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"cache_seqlens": int32(7, 7).long()}, "cache_seqlens is int64; it must be int32"),
        ({"cache_seqlens": int32(7)}, r"cache_seqlens has shape \[1\]"),
        ({"cache_seqlens": int32(7, 8)}, r"cache_seqlens\[1\] is 8; it must be 0 to 7"),
        ({"cache_seqlens": int32(-1, 7)}, r"cache_seqlens\[0\] is -1"),
        ({"cache_starts": int32(0, 8)}, r"cache_starts\[1\] is 8"),
        ({"cache_starts": int32(0, -1)}, r"cache_starts\[1\] is -1"),
        ({"cu_seqlens_q": int32(0, 5, 10)}, "cu_seqlens_q"),
        ({"page_table": int32(0, 2).reshape(2, 1)}, r"page_table\[1, 0\] is 2"),
        ({"page_table": int32(0, 1)[:, None].long()}, r"page_table is int64; it must be int32 \("),
        ({"page_table": int32(0, 1)}, r"page_table has shape \[2\]"),
        ({"k_scale": torch.ones(2)}, "k_scale"),
        ({"v_scale": torch.ones(2)}, "v_scale"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_decode_arguments(options, pattern):
    refused(pattern, parallax.decode, *inputs(), **options)


def test_a_cache_is_never_copied():
    q, r, k, v = inputs()
    k = k.movedim(-1, 0).contiguous().movedim(0, -1)
    refused("k_cache has stride", parallax.decode, q, r, k, v)


def test_merge_states_arguments():
    q, r, k, v = inputs()
    state = parallax.decode(q, r, k, v, return_stats=True)
    refused("at least one", parallax.merge_states, [])
    refused("lse", parallax.merge_states, [state, state._replace(lse=state.lse[:1])])
    other = parallax.decode(*(x.bfloat16() for x in (q, r, k, v)), return_stats=True)
    refused("bfloat16", parallax.merge_states, [state, other])
    refused("as many of each", torch.ops.parallax.merge_states, *([x] for x in state[:3]), [])


def test_a_refused_call_says_so_when_compiled_too():
    torch._dynamo.reset()
    compiled = torch.compile(parallax.attention, fullgraph=True, backend="aot_eager")
    refused("q has 3 heads and k has 2", compiled,
            *inputs(q=lambda x: x[:, :, :3], r=lambda x: x[:, :, :3]))  # fmt: skip
