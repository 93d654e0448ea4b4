# SPDX-License-Identifier: Apache-2.0
"""norm_rope and swiglu on CUDA tensors: values, bits, graphs, streams, size and refusals."""

import parallax
import pytest
import torch
from cuda_support import DEVICE, equal_bits, needs_memory, skip_module_without_cuda
from row_ops_support import (
    NORM_ROPE_CASES,
    TOLERANCE,
    assert_close,
    make_norm_rope,
    naive_norm_rope,
    naive_swiglu,
    with_gradients,
)
from torch.library import opcheck

skip_module_without_cuda()

pytestmark = pytest.mark.usefixtures("poisoned_device_memory", "seed")

ops = torch.ops.parallax
SWIGLU_SHAPES = [(7,), (3, 130), (2, 3, 4, 24), (1000, 1536), (301, 333)]


def make_swiglu(shape, dtype):
    inputs = {"gate": 3 * torch.randn(shape), "up": torch.randn(shape)}
    return {name: x.to(DEVICE, dtype) for name, x in inputs.items()}, torch.randn(shape).to(
        DEVICE, dtype
    )


def to_cpu(inputs, dy):
    return {name: x.cpu() for name, x in inputs.items()}, dy.cpu()


# ---- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", NORM_ROPE_CASES)
def test_norm_rope_equals_float64_and_the_cpu(case, dtype):
    inputs, dy = make_norm_rope(case, dtype, DEVICE)
    actual = with_gradients(parallax.norm_rope, inputs, dy)
    assert all(x.is_cuda for x in actual)
    inputs, dy = to_cpu(inputs, dy)
    assert_close(actual, with_gradients(naive_norm_rope, inputs, dy, torch.float64), dtype)
    assert_close(actual, with_gradients(parallax.norm_rope, inputs, dy), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SWIGLU_SHAPES, ids=str)
def test_swiglu_equals_float64_and_the_cpu(shape, dtype):
    inputs, dy = make_swiglu(shape, dtype)
    actual = with_gradients(parallax.swiglu, inputs, dy)
    inputs, dy = to_cpu(inputs, dy)
    assert_close(actual, with_gradients(naive_swiglu, inputs, dy, torch.float64), dtype)
    assert_close(actual, with_gradients(parallax.swiglu, inputs, dy), dtype)


def test_the_gains_gradient_of_many_rows():
    """A float32 sum row by row is 1.2e-2 off here, the blocks' sums are 3e-4."""
    x, dy = torch.randn(2, 1 << 18, 64, device=DEVICE)
    gain = torch.randn(64, device=DEVICE)
    _, d_gain = ops.norm_rope_backward(dy, x, gain, None, None, 1e-6)
    normed = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    expected = (dy.double() * normed).sum(0)
    assert (d_gain - expected).abs().max() <= 2e-3


@pytest.mark.parametrize("out_dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("gain_dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_mixed_dtypes_round_once(dtype, gain_dtype, out_dtype):
    x, gain = torch.randn(50, 3, 64).to(DEVICE, dtype), torch.randn(64).to(DEVICE, gain_dtype)
    cos, sin = torch.randn(2, 50, 32, device=DEVICE)
    y = parallax.norm_rope(x, gain, cos, sin, dtype=out_dtype)
    wide = parallax.norm_rope(x, gain, cos, sin, dtype=torch.float32)
    assert y.dtype == out_dtype and equal_bits([y], [wide.to(out_dtype)])
    dy = torch.randn_like(y)
    dx, d_gain = ops.norm_rope_backward(dy, x, gain, cos, sin, 1e-6)
    assert (dx.dtype, d_gain.dtype) == (dtype, gain_dtype)
    others = (dy.float(), x.float(), gain.float(), cos, sin, 1e-6)
    wide = ops.norm_rope_backward(*others)
    expected = [g.to(to) for g, to in zip(wide, (dtype, gain_dtype), strict=True)]
    assert equal_bits([dx, d_gain], expected)


STRIDED = {
    "slice": lambda x: torch.nn.functional.pad(x, (3, 2))[..., 3:-2],
    "aligned slice": lambda x: torch.nn.functional.pad(x, (16, 16))[..., 16:-16],
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "last dimension strided": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "one element in": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("layout", STRIDED)
def test_any_strides_give_the_bits_of_contiguous_tensors(layout):
    change = STRIDED[layout]
    inputs, dy = make_norm_rope("both", torch.bfloat16, DEVICE)
    expected = with_gradients(parallax.norm_rope, inputs, dy)
    actual = with_gradients(parallax.norm_rope, {**inputs, "x": change(inputs["x"])}, change(dy))
    assert equal_bits(actual, expected)
    gate, up = inputs["x"], dy.clone()
    expected = with_gradients(parallax.swiglu, {"gate": gate, "up": up}, dy)
    strided = {"gate": change(gate), "up": up}
    assert equal_bits(with_gradients(parallax.swiglu, strided, change(dy)), expected)


def test_repeated_rows_are_read_in_place():
    row, gain = torch.randn(128, device=DEVICE), torch.randn(128, device=DEVICE)
    x = row.expand(5, 3, 128)
    expected = parallax.norm_rope(x.contiguous(), gain)
    assert equal_bits([ops.norm_rope(x, gain, None, None, 1e-6, x.dtype)], [expected])
    assert equal_bits([ops.swiglu(x, x)], [ops.swiglu(x.contiguous(), x.contiguous())])


def test_empty_tensors():
    x, gain = torch.randn(0, 3, 8, device=DEVICE), torch.randn(8, device=DEVICE)
    assert parallax.norm_rope(x, gain).shape == x.shape
    dx, d_gain = ops.norm_rope_backward(x, x, gain, None, None, 1e-6)
    assert dx.shape == x.shape and torch.equal(d_gain, torch.zeros_like(gain))
    assert parallax.swiglu(x, x).shape == x.shape


# ---- bits, graphs, streams --------------------------------------------------------------------


def every_result(problem):
    inputs, dy, gates, d_out = problem
    results = with_gradients(parallax.norm_rope, inputs, dy)
    return [*results, *with_gradients(parallax.swiglu, gates, d_out)]


def draw_problem(case="both, one sequence", dtype=torch.bfloat16):
    return (*make_norm_rope(case, dtype, DEVICE), *make_swiglu((1000, 1536), dtype))


def tensors_of(problem):
    inputs, dy, gates, d_out = problem
    return [*inputs.values(), dy, *gates.values(), d_out]


@pytest.mark.parametrize("case", ["wide", "many rows", "both", "longer than a block holds"])
def test_repeats_under_load_have_the_same_bits(case):
    problem = draw_problem(case)
    expected = every_result(problem)
    load = torch.randn(2048, 2048, device=DEVICE, dtype=torch.bfloat16)
    product, side = torch.empty_like(load), torch.cuda.Stream()
    torch.cuda.synchronize()
    for call in range(50):
        with torch.cuda.stream(side):
            torch.mm(load, load, out=product)
        assert equal_bits(every_result(problem), expected), f"call {call + 2}"
    torch.cuda.synchronize()


@pytest.mark.parametrize("case", ["wide", "both, one sequence", "rotation"])
def test_a_replay_has_the_eager_bits(case):
    static = draw_problem(case)
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(2):
            every_result(static)
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = every_result(static)
    for _ in range(3):
        for tensor, new in zip(tensors_of(static), tensors_of(draw_problem(case)), strict=True):
            tensor.copy_(new)
        for tensor in results:
            tensor.fill_(float("nan"))
        graph.replay()
        assert equal_bits([x.clone() for x in results], every_result(static))


def test_two_streams_at_once_do_not_meet():
    problems = [draw_problem("wide"), draw_problem("both, one sequence")]
    expected = [every_result(problem) for problem in problems]
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in problems], [[], []]
    for _ in range(20):
        for stream, problem, of_stream in zip(streams, problems, results, strict=True):
            with torch.cuda.stream(stream):
                of_stream.append(every_result(problem))
    torch.cuda.synchronize()
    for of_stream, truth in zip(results, expected, strict=True):
        assert all(equal_bits(run, truth) for run in of_stream)


@pytest.mark.parametrize("case", ["norm", "rotation", "both"])
def test_opcheck(case):
    inputs, dy = make_norm_rope(case, torch.bfloat16, DEVICE)
    named = [inputs.get(name) for name in ("x", "gain", "cos", "sin")]
    leaves = [x if x is None else x.clone().requires_grad_() for x in named[:2]]
    opcheck(ops.norm_rope.default, (*leaves, *named[2:], 1e-6, torch.float32))
    opcheck(ops.norm_rope_backward.default, (dy, *named, 1e-6))
    gates, d_out = make_swiglu((3, 130), torch.float16)
    leaves = tuple(x.clone().requires_grad_() for x in gates.values())
    opcheck(ops.swiglu.default, leaves)
    opcheck(ops.swiglu_backward.default, (d_out, *gates.values()))


def test_compiled_functions_have_the_eager_bits():
    pytest.importorskip("triton", reason="torch.compile for GPUs needs Triton")
    torch._dynamo.reset()
    for function, (inputs, dy) in (
        (parallax.norm_rope, make_norm_rope("both", torch.bfloat16, DEVICE)),
        (parallax.swiglu, make_swiglu((3, 130), torch.bfloat16)),
    ):
        compiled = torch.compile(function, fullgraph=True)
        assert equal_bits(*(with_gradients(f, inputs, dy) for f in (compiled, function)))


# ---- limits and refusals ----------------------------------------------------------------------


@needs_memory(40)
def test_more_than_two_to_the_31_elements():
    rows, dim = 1_100_000, 2048
    x = torch.randn(rows, dim, device=DEVICE, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    gain = torch.randn(dim, device=DEVICE, dtype=torch.bfloat16)
    y, glu = parallax.norm_rope(x, gain), parallax.swiglu(x, x)
    dx, _ = ops.norm_rope_backward(x, x, gain, None, None, 1e-6)
    for at in (slice(3), slice(2**31 // dim - 1, 2**31 // dim + 2), slice(rows - 3, rows)):
        assert equal_bits([y[at], glu[at]], [parallax.norm_rope(x[at], gain),
                                             parallax.swiglu(x[at], x[at])])  # fmt: skip
        part, _ = ops.norm_rope_backward(x[at], x[at], gain, None, None, 1e-6)
        assert equal_bits([dx[at]], [part])
    del x, y, glu, dx
    torch.cuda.empty_cache()


def refusal(function, *args):
    with pytest.raises(RuntimeError) as caught:
        function(*args)
    return str(caught.value).splitlines()[0]


def moved(args):
    return [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in args]


def bad_calls():
    x, gain = torch.randn(2, 5, 3, 8), torch.randn(8)
    cos, sin = torch.randn(2, 5, 4)
    rest = (1e-6, torch.float32)
    return {
        "dtype of x": (ops.norm_rope, x.double(), gain, cos, sin, *rest),
        "shape of gain": (ops.norm_rope, x, gain[:5], cos, sin, *rest),
        "dtype of cos": (ops.norm_rope, x, gain, cos.half(), sin, *rest),
        "no sin": (ops.norm_rope, x, gain, cos, None, *rest),
        "odd size": (ops.norm_rope, x[..., :7], gain[:7], cos, sin, *rest),
        "nothing to do": (ops.norm_rope, x, None, None, None, *rest),
        "eps": (ops.norm_rope, x, gain, cos, sin, -1.0, torch.float32),
        "dtype of the result": (ops.norm_rope, x, gain, cos, sin, 1e-6, torch.float64),
        "shape of dy": (ops.norm_rope_backward, x[:1], x, gain, cos, sin, 1e-6),
        "shape of up": (ops.swiglu, x, x[:1]),
        "dtype of up": (ops.swiglu, x, x.long()),
        "stride of gate": (ops.swiglu, x.mT.contiguous().mT, x),
        "dtype of dy": (ops.swiglu_backward, x.double(), x, x),
    }


@pytest.mark.parametrize("call", bad_calls())
def test_bad_arguments_are_refused_in_the_words_of_the_cpu(call):
    function, *args = bad_calls()[call]
    assert refusal(function, *moved(args)) == refusal(function, *args)
    x = torch.ones(2, 8, device=DEVICE)
    assert torch.isfinite(parallax.swiglu(x, x)).all()  # the device is still usable


def test_tensors_on_two_devices():
    x, gain = torch.randn(5, 8, device=DEVICE), torch.randn(8)
    message = r"on cpu and \w+ on cuda:0; all tensors must be on one device"
    with pytest.raises(RuntimeError, match="gain is " + message):
        parallax.norm_rope(x, gain)
    with pytest.raises(RuntimeError, match="up is " + message):
        parallax.swiglu(x, x.cpu())
    with pytest.raises(RuntimeError, match="all tensors must be on one device"):
        parallax.swiglu(x.cpu(), x)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_tensors_device_need_not_be_the_current_one():
    x = torch.randn(300, 64)
    expected = parallax.norm_rope(x.to("cuda:0"), x[0].to("cuda:0")).cpu()
    actual = parallax.norm_rope(x.to("cuda:1"), x[0].to("cuda:1"))
    assert actual.device.index == 1 and torch.cuda.current_device() == 0
    assert equal_bits([actual.cpu()], [expected])
    with pytest.raises(RuntimeError, match="all tensors must be on one device"):
        parallax.swiglu(x.to("cuda:0"), x.to("cuda:1"))
