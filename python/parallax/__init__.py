# SPDX-License-Identifier: Apache-2.0
"""Parallax attention for PyTorch.

For query i over the keys j visible to it, with the probe r beside the usual q, k and v:

    p_ij = softmax_j(scale * q_i.k_j)    t_ij = r_i.k_j (no scale)    t_mean_i = sum_j p_ij t_ij
    out_i = sum_j p_ij (1 + t_mean_i - t_ij) v_j  =  E_p[v] - Cov_p(v, k) r_i

which is equation 8 of arXiv 2605.29157; docs/math.md derives it and its gradient. r = 0 gives
softmax attention. `norm_rope` and `swiglu` are a layer's other parts between matrix products, one
pass over memory each. The functions below are thin: they fill in defaults and call the C++ ops of
`torch.ops.parallax`, which check every argument. A refused argument raises RuntimeError (the C++
library's parallax::Error) that says what was given and what is allowed, and then nothing has been
computed; what is no tensor where one is needed raises TypeError. The ops work under
torch.compile(fullgraph=True) with dynamic shapes, torch.autocast, activation checkpointing and
torch.no_grad().
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from parallax import _ops

__version__ = "0.1.0"
__all__ = [
    "State",
    "attention",
    "decode",
    "merge_states",
    "norm_rope",
    "swiglu",
    "varlen_attention",
]


class State(NamedTuple):
    """What `return_stats=True` returns: the result and the statistics that make it mergeable.

    out          as without statistics, differentiable in attention and varlen_attention
    out_softmax  [shape of q] softmax attention with the same q, k and v
    lse          [B, Hq, Tq], packed [Hq, total_q], float32: log sum_j exp(scale * q_i.k_j), natural
                 log; -inf for a query that sees no key
    t_mean       shape and dtype of lse: sum_j p_ij t_ij; 0 for a query that sees no key

    lse and t_mean are float64 for float64 inputs. No gradient flows through the last three.
    """

    out: Tensor
    out_softmax: Tensor
    lse: Tensor
    t_mean: Tensor


def attention(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    deterministic: bool | None = None,
    return_stats: bool = False,
) -> Tensor | State:
    """Parallax attention over dense batches, differentiable in q, r, k and v.

    q, r    [B, Tq, Hq, D]   float32, bfloat16, float16, or float64 (for gradient checks)
    k, v    [B, Tk, Hkv, D]  same dtype and device; Hq must be a multiple of Hkv, and query head h
                             reads key head h // (Hq // Hkv); 1 <= D <= 256
    returns [B, Tq, Hq, D] contiguous, in the dtype of q; a State with return_stats=True

    scale multiplies q.k only, D**-0.5 when None. causal is end-aligned: query i sees the keys
    j <= i + Tk - Tq. window (at least 1, needs causal) keeps exactly the `window` newest of those,
    the query's own position included. A query that sees no key gives 0.

    The statistics are allocated and written for return_stats=True and where a gradient may be
    needed (grad mode is on and an input requires one); out has the same bits without them.

    Sums are float32 (float64 for float64); memory is O(T). The result is repeatable bit for bit;
    `deterministic` asks the same of the gradients, and None follows
    torch.are_deterministic_algorithms_enabled(). On the CPU they always are, for any number of
    threads. Any strides are read in place if the innermost one is 1; other inputs are copied first.
    Raises RuntimeError for arguments that are not allowed, for double backward and for forward-mode
    derivatives, and TypeError for a scale that is a tensor.
    """
    tensors = {"q": q, "r": r, "k": k, "v": v}
    _ops.require_tensors("attention", tensors)
    _ops.require_number("attention", "scale", scale)
    options = (scale, causal, window)
    return _attend(tensors.values(), (None, None), options, deterministic, return_stats)


def varlen_attention(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    deterministic: bool | None = None,
    return_stats: bool = False,
) -> Tensor | State:
    """`attention` over N sequences packed one after the other, without padding.

    q, r          [total_q, Hq, D]
    k, v          [total_k, Hkv, D]
    cu_seqlens_*  [N + 1] int32, contiguous, on the device of q: sequence n is rows cu_seqlens[n] to
                  cu_seqlens[n + 1] - 1; from 0, never decreasing, to the total. Query and key
                  lengths may differ (end-aligned per sequence), and either may be 0.
    returns       [total_q, Hq, D]; a State with lse and t_mean [Hq, total_q] with return_stats=True

    Everything else is as in `attention`; a result equals that of one call per sequence.
    """
    tensors = {"q": q, "r": r, "k": k, "v": v}
    lengths = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    _ops.require_tensors("varlen_attention", tensors, optional=lengths)  # the op names what misses
    _ops.require_number("varlen_attention", "scale", scale)
    options = (scale, causal, window)
    return _attend(tensors.values(), lengths.values(), options, deterministic, return_stats)


def decode(
    q: Tensor,
    r: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cache_starts: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    page_table: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    batch_invariant: bool = False,
    return_stats: bool = False,
) -> Tensor | State:
    """New query tokens against a key-value cache that already holds their keys. Not differentiable.

    q, r              [B, Tq, Hq, D], or packed [total_q, Hq, D] with cu_seqlens_q int32 [B + 1]
    k_cache, v_cache  [B, capacity, Hkv, D], or with page_table [num_pages, page_size, Hkv, D];
                      any page, token and head stride, innermost stride 1 (never copied)
    page_table        int32 [B, max_pages]: the pages of each sequence in order; entries past its
                      last page are not read
    cache_seqlens     int32 [B]: keys 0 .. cache_seqlens - 1 are valid; the capacity when None
    cache_starts      int32 [B]: the first valid key, for left padding; 0 when None
    k_scale, v_scale  for quantised caches: not built yet, refused
    returns           the shape and dtype of q; a State with return_stats=True

    The last query token of a sequence sits at key cache_seqlens - 1 and the tokens are causal among
    themselves, so one call serves single-token decode, speculative tokens and chunked prefill.
    Cache rows outside [cache_starts, cache_seqlens) may hold anything, NaN included. Under
    torch.autocast q and r are cast to the cache's dtype. batch_invariant asks that a sequence's
    result have the same bits whatever else is in the batch; on the CPU it always has.
    scale and window are as in `attention`. Raises RuntimeError for arguments that are not allowed.
    """
    _ops.require_tensors(
        "decode",
        {"q": q, "r": r, "k_cache": k_cache, "v_cache": v_cache},
        optional={
            "cache_starts": cache_starts,
            "cache_seqlens": cache_seqlens,
            "cu_seqlens_q": cu_seqlens_q,
            "page_table": page_table,
            "k_scale": k_scale,
            "v_scale": v_scale,
        },
    )
    _ops.require_number("decode", "scale", scale)
    state = State(
        *torch.ops.parallax.decode(
            _ops.unit_innermost_stride(q),
            _ops.unit_innermost_stride(r),
            k_cache,
            v_cache,
            cache_starts,
            cache_seqlens,
            cu_seqlens_q,
            page_table,
            k_scale,
            v_scale,
            scale,
            window,
            batch_invariant,
        )
    )
    return state if return_stats else state.out


def merge_states(states: Sequence[State]) -> State:
    """The State over the union of disjoint sets of keys, from those of the same queries over each.

    With w_s = exp(lse_s - lse): out_softmax = sum_s w_s out_softmax_s, likewise t_mean, and
    E[t v] = sum_s w_s ((1 + t_mean_s) out_softmax_s - out_s),
    out = (1 + t_mean) out_softmax - E[t v].
    The order of the states does not matter beyond rounding. Not differentiable. Raises RuntimeError
    if shapes, dtypes or devices differ or there is no state.
    """
    if not isinstance(states, list | tuple):
        given = type(states).__name__
        raise TypeError(f"merge_states: states is of type {given}; it must be a list of State")
    if not states:  # an op call without a tensor reaches no kernel
        raise RuntimeError("merge_states: got no state, at least one is needed")
    for index, state in enumerate(states):
        if not isinstance(state, tuple) or len(state) != len(State._fields):
            given = type(state).__name__
            raise TypeError(f"merge_states: states[{index}] is of type {given}; it must be a State")
        fields = {
            f"states[{index}].{name}": x for name, x in zip(State._fields, state, strict=True)
        }
        _ops.require_tensors("merge_states", fields)
    columns = (list(column) for column in zip(*states, strict=True))
    return State(*torch.ops.parallax.merge_states(*columns))


def norm_rope(
    x: Tensor,
    gain: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """RMSNorm and the rotary position embedding in one pass, differentiable in x and gain.

        y = rotate(gain x / sqrt(mean(x^2) + eps))    over the last dimension

    x         [.., D], with tables [.., N, H, D] and an even D; 1 to 4 dimensions
    gain      [D]; None: nothing is normalised, and eps has no effect
    cos, sin  float32 [N, D / 2], both or none: dimension i < D / 2 of token n turns with i + D / 2
              by the angle whose cosine and sine these are; None: nothing is rotated
    returns   the shape of x, contiguous, in dtype; that of x when None

    x, gain and the result are float32, bfloat16 or float16, each its own; a gain or tables, or
    both, are needed. Computed in float32 and rounded once; the backward pass computes the root mean
    square again, so that nothing but the inputs is kept for it. Result and gradients repeat bit for
    bit. Under torch.autocast nothing is cast. Any strides are read in place if the innermost one is
    1; other inputs are copied first. Raises RuntimeError for arguments that are not allowed, for
    double backward and for gradients of cos and sin, and TypeError for an eps that is a tensor.
    """
    tensors = {"x": x, "gain": gain, "cos": cos, "sin": sin}
    optional = {name: tensors[name] for name in ("gain", "cos", "sin")}
    _ops.require_tensors("norm_rope", {"x": x}, optional=optional)
    _ops.require_number("norm_rope", "eps", eps, allowed="a float")
    tensors = [None if t is None else _ops.unit_innermost_stride(t) for t in tensors.values()]
    return torch.ops.parallax.norm_rope(*tensors, eps, x.dtype if dtype is None else dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up in one pass, silu(x) = x / (1 + exp(-x)); differentiable in both.

    gate, up  [..], 1 to 4 dimensions, one shape; float32, bfloat16 or float16, each its own
    returns   the same shape, contiguous, in the dtype of gate

    Computed in float32 and rounded once. Strides, autocast, repeats and errors are as in
    `norm_rope`.
    """
    tensors = {"gate": gate, "up": up}
    _ops.require_tensors("swiglu", tensors)
    return torch.ops.parallax.swiglu(*map(_ops.unit_innermost_stride, tensors.values()))


def _attend(tensors, cu_seqlens, options, deterministic, return_stats) -> Tensor | State:
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    tensors = [_ops.unit_innermost_stride(tensor) for tensor in tensors]
    state = State(
        *torch.ops.parallax.attention_forward(
            *tensors,
            *cu_seqlens,
            *options,
            deterministic,
            return_stats=bool(return_stats) or _ops.needs_gradient(tensors),
        )
    )
    return state if return_stats else state.out
