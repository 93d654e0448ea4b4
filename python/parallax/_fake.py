# SPDX-License-Identifier: Apache-2.0
"""What the ops return, without computing it: for meta tensors and for torch.compile.

The checks are those of src/core/validate.cc that need no value of a tensor, in the same order and
the same words (tests/python/test_fake.py compares them), so that a call that would be refused when
it runs is refused when it is traced. Sizes may be symbolic: each check is one torch._check, which
becomes a guard or a deferred check, and one compiled graph serves every shape.
"""

import math

import torch
from torch import Tensor

MAX_HEAD_DIM = 256
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
QUERY_LEGEND = "[B, Tq, Hq, D], or packed [total_q, Hq, D]"


def _text(sizes) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in sizes) + "]"


def _dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_query_rank(name: str, q: Tensor) -> None:
    torch._check(
        q.dim() in (3, 4), lambda: f"{name} has {q.dim()} dimensions; it must be {QUERY_LEGEND}"
    )


def _check_views(values: dict, indices: dict) -> None:
    """What src/torch/tensor_view.cc asks of any tensor; absent ones are None."""
    named = [(*item, "float32, bfloat16, float16 or float64") for item in values.items()]
    named += [(*item, "int32 (lengths and indices)") for item in indices.items()]
    for name, x, allowed in named:
        if x is None:
            continue
        torch._check(
            x.layout == torch.strided,
            lambda name=name: (
                f"{name} is sparse or otherwise laid out; it must be a dense strided tensor"
            ),
        )
        torch._check(
            1 <= x.dim() <= 4,
            lambda name=name, x=x: f"{name} has {x.dim()} dimensions; it must have 1 to 4",
        )
        torch._check(
            x.dtype in (*FLOATING, torch.int32),
            lambda name=name, x=x, allowed=allowed: (
                f"{name} is {_dtype_text(x.dtype)}; it must be {allowed}"
            ),
        )


def _check_present(name: str, x: Tensor | None) -> None:
    torch._check(x is not None, lambda: f"{name} is missing; it is required here")


def _check_dtype(name: str, x: Tensor, expected: torch.dtype, reason: str) -> None:
    torch._check(
        x.dtype == expected,
        lambda: f"{name} is {_dtype_text(x.dtype)}; it must be {_dtype_text(expected)} ({reason})",
    )


def _check_shape(name: str, x: Tensor, expected, legend: str) -> None:
    """Sizes of None may be anything."""

    def message() -> str:
        return f"{name} has shape {_text(x.shape)}; it must be {_text(expected)} ({legend})"

    torch._check(x.dim() == len(expected), message)
    for size, wanted in zip(x.shape, expected, strict=True):
        if wanted is not None:
            torch._check(size == wanted, message)


def _check_innermost_stride(name: str, x: Tensor) -> None:
    if x.stride(-1) == 1 or x.shape[-1] <= 1 or x.numel() == 0:
        return
    raise RuntimeError(f"{name} has stride {x.stride(-1)} in its last dimension; it must be 1")


def _check_index_vector(name: str, x: Tensor | None, expected, legend: str) -> None:
    _check_present(name, x)
    _check_dtype(name, x, torch.int32, "lengths and indices")
    _check_shape(name, x, expected, legend)
    _check_innermost_stride(name, x)


def _check_options(scale, causal: bool, window, dtype: torch.dtype) -> None:
    if isinstance(scale, int | float):  # not a symbolic one
        torch._check(math.isfinite(scale), lambda: f"softmax_scale is {scale:g}; it must be finite")
        rounds_to_infinity = 2.0**128 - 2.0**103
        torch._check(
            dtype == torch.float64 or abs(scale) < rounds_to_infinity,
            lambda: (
                f"softmax_scale is {scale:g} and q is {_dtype_text(dtype)}; it must be finite in "
                "float32"
            ),
        )
    if window is not None:
        torch._check(
            causal, lambda: f"window is {window} with the full mask; a window needs the causal mask"
        )
        torch._check(window >= 1, lambda: f"window is {window}; it must be at least 1")


class _Layout:
    """The sizes of a call, all of which follow from one tensor: q, or the first out of a merge."""

    def __init__(self, source: str, q: Tensor):
        self.source, self.dtype, self.packed = source, q.dtype, q.dim() == 3
        torch._check(
            q.dtype in FLOATING,
            lambda: (
                f"{source} is {_dtype_text(q.dtype)}; it must be float32, bfloat16, float16 or "
                "float64"
            ),
        )
        _check_innermost_stride(source, q)
        *self.rows, self.num_heads, self.head_dim = q.shape
        for fits in (self.head_dim >= 1, self.head_dim <= MAX_HEAD_DIM):
            torch._check(
                fits,
                lambda: (
                    f"{source} has shape {_text(q.shape)} and so head size {self.head_dim}; it "
                    f"must be 1 to {MAX_HEAD_DIM}"
                ),
            )
        torch._check(
            self.num_heads >= 1,
            lambda: f"{source} has shape {_text(q.shape)} and so no head; at least 1 is needed",
        )

    def check_values(self, name: str, x: Tensor, expected, legend: str) -> None:
        _check_dtype(name, x, self.dtype, f"the dtype of {self.source}")
        _check_shape(name, x, expected, legend)
        _check_innermost_stride(name, x)

    def check_query(self, name: str, x: Tensor) -> None:
        legend = "[total_q, Hq, D]" if self.packed else "[B, Tq, Hq, D]"
        expected = (*self.rows, self.num_heads, self.head_dim)
        self.check_values(name, x, expected, f"{legend}, as {self.source}")

    def check_statistic(self, name: str, x: Tensor) -> None:
        is_double = self.dtype == torch.float64
        reason = "the inputs are float64" if is_double else "the inputs are not float64"
        _check_dtype(name, x, torch.float64 if is_double else torch.float32, reason)
        legend = "[Hq, total_q]" if self.packed else "[B, Hq, Tq]"
        expected = (*self.rows[:-1], self.num_heads, self.rows[-1])
        _check_shape(name, x, expected, f"{legend} of {self.source}")

    def check_state(self, prefix: str, out, out_softmax, lse, t_mean) -> None:
        self.check_query(f"{prefix}out", out)
        self.check_query(f"{prefix}out_softmax", out_softmax)
        self.check_statistic(f"{prefix}lse", lse)
        self.check_statistic(f"{prefix}t_mean", t_mean)

    def check_groups(self, name: str, k: Tensor) -> None:
        heads = k.shape[-2]

        def message() -> str:
            return (
                f"q has {self.num_heads} heads and {name} has {heads}; the query heads must be a "
                "multiple of the key heads"
            )

        torch._check(heads >= 1, message)
        torch._check(self.num_heads % heads == 0, message)

    def check_unpacked(self, name: str, x: Tensor | None, q: Tensor) -> None:
        torch._check(
            self.packed or x is None,
            lambda: (
                f"{name} is given, but q has shape {_text(q.shape)}; variable length needs packed "
                "q [total_q, Hq, D]"
            ),
        )


def _check_cu_seqlens(name: str, x: Tensor | None) -> None:
    _check_index_vector(name, x, (None,), "[N + 1]")
    torch._check(
        x.shape[0] >= 1, lambda: f"{name} is empty; for N sequences it must have N + 1 entries"
    )


def _check_devices(named: dict) -> None:
    """A tensor on the meta device brings any call here, so this is where the mixture is refused."""
    (first_name, first), *others = ((n, x) for n, x in named.items() if x is not None)
    for name, x in others:
        torch._check(
            x.device == first.device,
            lambda name=name, x=x: (
                f"{name} is on {x.device} and {first_name} on {first.device}; all tensors must be "
                "on one device"
            ),
        )


def _check_training(inputs: dict, cu_seqlens: dict, options) -> _Layout:
    q, r, k, v = inputs.values()
    scale, causal, window, *_ = options
    _check_options(scale, causal, window, q.dtype)
    _check_query_rank("q", q)
    layout = _Layout("q", q)
    layout.check_query("r", r)
    if layout.packed:
        keys, legend = (None, None, layout.head_dim), "[total_k, Hkv, D] with q's D"
    else:
        keys = (layout.rows[0], None, None, layout.head_dim)
        legend = "[B, Tk, Hkv, D] with q's B and D"
    layout.check_values("k", k, keys, legend)
    layout.check_groups("k", k)
    layout.check_values("v", v, k.shape, "the shape of k")
    for name, x in cu_seqlens.items():
        layout.check_unpacked(name, x, q)
        if layout.packed:
            _check_cu_seqlens(name, x)
    if layout.packed:
        num_q, num_k = (x.shape[0] for x in cu_seqlens.values())
        torch._check(
            num_q == num_k,
            lambda: (
                f"cu_seqlens_q has {num_q} entries and cu_seqlens_k {num_k}; they must have the "
                "same number"
            ),
        )
    return layout


def _outputs(q: Tensor, *, return_stats: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out and out_softmax like q, contiguous; lse and t_mean [B, H, T], or [H, T] packed.

    Without return_stats the last three are [0].
    """
    *batch, tokens, heads, _ = q.shape
    sizes, row_sizes = (q.shape, (*batch, heads, tokens)) if return_stats else ((0,), (0,))
    stats_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse, t_mean = (q.new_empty(row_sizes, dtype=stats_dtype) for _ in range(2))
    return q.new_empty(q.shape), q.new_empty(sizes), lse, t_mean


def attention_forward(
    q,
    r,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    scale,
    causal,
    window,
    deterministic=False,
    return_stats=True,
):
    values = {"q": q, "r": r, "k": k, "v": v}
    indices = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    _check_query_rank("q", q)
    _check_views(values, indices)
    _check_training(values, indices, (scale, causal, window))
    _check_devices(values | indices)
    return _outputs(q, return_stats=return_stats)


def attention_backward(
    d_out, q, r, k, v, out, out_softmax, lse, t_mean, cu_seqlens_q, cu_seqlens_k, *options
):
    inputs = {"q": q, "r": r, "k": k, "v": v}
    state = {"out": out, "out_softmax": out_softmax, "lse": lse, "t_mean": t_mean}
    indices = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    _check_views({"d_out": d_out} | inputs | state, indices)
    layout = _check_training(inputs, indices, options)
    layout.check_query("d_out", d_out)
    layout.check_state("", *state.values())
    _check_devices(inputs | indices | {"d_out": d_out} | state)
    return tuple(tensor.new_empty(tensor.shape) for tensor in (q, r, k, v))


def _check_caches(layout: _Layout, k_cache, v_cache, page_table, batch) -> None:
    if page_table is not None:
        keys, legend = (None, None), "[num_pages, page_size, Hkv, D] with q's D"
    elif layout.packed:
        keys = (batch, None)
        legend = "[B, capacity, Hkv, D] with B + 1 entries in cu_seqlens_q and q's D"
    else:
        keys, legend = (batch, None), "[B, capacity, Hkv, D] with q's B and D"
    layout.check_values("k_cache", k_cache, (*keys, None, layout.head_dim), legend)
    layout.check_groups("k_cache", k_cache)
    layout.check_values("v_cache", v_cache, k_cache.shape, "the shape of k_cache")
    if page_table is None:
        return
    torch._check(
        k_cache.shape[1] >= 1,
        lambda: f"k_cache has shape {_text(k_cache.shape)}; a page must hold at least 1 token",
    )
    _check_index_vector("page_table", page_table, (batch, None), "[B, max_pages]")


def decode(q, r, k_cache, v_cache, cache_starts, cache_seqlens, cu_seqlens_q, page_table, *options):
    k_scale, v_scale, scale, window, _ = options
    values = {"q": q, "r": r, "k_cache": k_cache, "v_cache": v_cache}
    lengths = {"cache_starts": cache_starts, "cache_seqlens": cache_seqlens}
    indices = lengths | {"cu_seqlens_q": cu_seqlens_q, "page_table": page_table}
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    _check_query_rank("q", q)
    _check_views(values | scales, indices)
    _check_options(scale, True, window, q.dtype)
    for name, x in scales.items():
        torch._check(
            x is None,
            lambda name=name: (
                f"{name} is given, but quantised caches are not built yet; leave it undefined"
            ),
        )
    layout = _Layout("q", q)
    layout.check_query("r", r)
    layout.check_unpacked("cu_seqlens_q", cu_seqlens_q, q)
    if layout.packed:
        _check_cu_seqlens("cu_seqlens_q", cu_seqlens_q)
    batch = cu_seqlens_q.shape[0] - 1 if layout.packed else q.shape[0]
    _check_caches(layout, k_cache, v_cache, page_table, batch)
    for name, x in lengths.items():
        if x is not None:
            _check_index_vector(name, x, (batch,), "[B]")
    _check_devices(values | indices)
    return _outputs(q)


def merge_states(out, out_softmax, lse, t_mean):
    torch._check(
        len(out) == len(out_softmax) == len(lse) == len(t_mean),
        lambda: (
            f"merge_states: got {len(out)} out, {len(out_softmax)} out_softmax, {len(lse)} lse and "
            f"{len(t_mean)} t_mean (as many of each are needed)"
        ),
    )
    named = {}
    for index, state in enumerate(zip(out, out_softmax, lse, t_mean, strict=True)):
        names = ("out", "out_softmax", "lse", "t_mean")
        named |= {f"partials[{index}].{n}": x for n, x in zip(names, state, strict=True)}
    _check_views(named, {})
    _check_query_rank("partials[0].out", out[0])
    layout = _Layout("out", out[0])
    for index, state in enumerate(zip(out, out_softmax, lse, t_mean, strict=True)):
        layout.check_state(f"partials[{index}].", *state)
    _check_devices(named)
    return _outputs(out[0])
