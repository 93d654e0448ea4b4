# SPDX-License-Identifier: Apache-2.0
"""Parallax attention written plainly, with PyTorch's own autograd, and the error measures.

This is the second definition of the maths beside src/reference: it shares nothing with it.
"""

from types import SimpleNamespace

import torch


def visible_keys(num_queries, num_keys, causal=True, window=None, first_key=0):
    """[Tq, Tk] bool: end-aligned causal mask, the newest `window` keys, keys from first_key on."""
    position = torch.arange(num_queries)[:, None] + (num_keys - num_queries)
    key = torch.arange(num_keys)[None, :]
    visible = (key >= first_key).expand(num_queries, num_keys).clone()
    if causal:
        visible &= key <= position
    if window is not None:
        visible &= key > position - window
    return visible


def naive(q, r, k, v, *, scale=None, causal=True, window=None, first_key=0):
    """out, out_softmax, lse and t_mean for q, r [B, Tq, Hq, D] and k, v [B, Tk, Hkv, D]."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    visible = visible_keys(q.shape[1], k.shape[1], causal, window, first_key)
    s = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    t = torch.einsum("bihd,bjhd->bhij", r, k)
    s = s.masked_fill(~visible, float("-inf"))
    lse = s.detach().logsumexp(-1)
    has_key = visible.any(-1)[:, None]
    p = torch.where(has_key, s, 0.0).softmax(-1) * visible
    t_mean = (p * t).sum(-1)
    weights = p * (1 + t_mean[..., None] - t)
    out = torch.einsum("bhij,bjhd->bihd", weights, v)
    out_softmax = torch.einsum("bhij,bjhd->bihd", p, v)
    return SimpleNamespace(out=out, out_softmax=out_softmax, lse=lse, t_mean=t_mean)


def naive_with_gradients(inputs, d_out, dtype=torch.float64, **options):
    """[out, dq, dr, dk, dv] in `dtype`, one key head at a time, which bounds the memory."""
    q, r, k, v = (x.detach().to(dtype) for x in inputs)
    results = [torch.empty_like(x) for x in (q, q, r, k, v)]
    group = q.shape[2] // k.shape[2]
    for batch in range(q.shape[0]):
        for head in range(k.shape[2]):
            heads = (slice(head * group, (head + 1) * group), slice(head, head + 1))
            where = [(slice(batch, batch + 1), slice(None), heads[i]) for i in (0, 0, 1, 1)]
            leaves = [
                x[at].clone().requires_grad_() for x, at in zip((q, r, k, v), where, strict=True)
            ]
            out = naive(*leaves, **options).out
            gradients = torch.autograd.grad(out, leaves, d_out[where[0]].to(dtype))
            at_results = [where[0], *where]
            for result, at, x in zip(results, at_results, [out, *gradients], strict=True):
                result[at] = x.detach()
    return results


def plain_loops(inputs, d_out, *, scale=None, window=None):
    """[out, dq, dr, dk, dv], causal, in the inputs' own dtype with every sum taken term by term.

    As in any kernel, the backward half starts from the rounded log-sum-exp that forward saved.
    """

    def matmul(a, b):
        total = torch.zeros(())
        for i in range(b.shape[-2]):
            total = total + a[..., :, i, None] * b[..., None, i, :]
        return total

    def dot(a, b):
        return matmul(a[..., None, :], b[..., :, None])[..., 0]

    group = inputs[0].shape[2] // inputs[2].shape[2]
    q, r, k, v, d_out = (x.transpose(1, 2) for x in (*inputs, d_out))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    visible = visible_keys(q.shape[2], k.shape[2], window=window)
    s = (matmul(q, k.mT) * scale).masked_fill(~visible, float("-inf"))
    peak = s.amax(-1, keepdim=True)
    p = (s - peak).exp()
    total = matmul(p, torch.ones(p.shape[-1], 1))
    p, lse = p / total, peak + total.log()
    t = matmul(r, k.mT)
    factor = 1 + dot(p, t) - t
    out_softmax, out = matmul(p, v), matmul(p * factor, v)
    p = (s - lse).exp()
    weights = p * factor
    g, g_mean, tau = matmul(d_out, v.mT), dot(d_out, out_softmax), dot(d_out, out)
    ds = weights * (g - g_mean) + p * (g_mean - tau)
    dt = -p * (g - g_mean)

    def rows_of_group(x):
        return x.unflatten(1, (-1, group)).flatten(2, 3)

    # One sum over the queries of all heads of a group, as the definition of dk and dv has it.
    score_gradients = torch.cat([rows_of_group(x) for x in (scale * ds, dt)], dim=2)
    dk = matmul(score_gradients.mT, torch.cat([rows_of_group(x) for x in (q, r)], dim=2))
    dv = matmul(rows_of_group(weights).mT, rows_of_group(d_out))
    results = (out, matmul(ds, k) * scale, matmul(dt, k), dk, dv)
    return [x.transpose(1, 2) for x in results]


def make_inputs(batch, tq, tk, hq, hkv, dim, dtype=torch.float32, normed=False):
    """q, r, k, v of standard normal values; normed makes each head's q, r and k unit rms."""
    tensors = [torch.randn(batch, t, h, dim) for t, h in ((tq, hq), (tq, hq), (tk, hkv), (tk, hkv))]
    if normed:
        tensors[:3] = [x * x.square().mean(-1, keepdim=True).rsqrt() for x in tensors[:3]]
    return [x.to(dtype) for x in tensors]


def errors(actual, expected):
    """(rms error / rms, max error / max) of actual against expected, in float64."""
    actual, expected = actual.detach().double(), expected.detach().double()
    diff = actual - expected
    rms = diff.square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-30)
    peak = diff.abs().max() / expected.abs().max().clamp_min(1e-30)
    return rms.item(), peak.item()


def assert_close(name, actual, expected, tolerance):
    """Both error measures stay below `tolerance`, or (rms, max) tolerances; NaN never does."""
    allowed = tolerance if isinstance(tolerance, tuple) else (tolerance, tolerance)
    assert actual.shape == expected.shape, f"{name}: {actual.shape} against {expected.shape}"
    if expected.numel() == 0:
        return
    rms, peak = errors(actual, expected)
    worst = (actual.detach().double() - expected.double()).abs().nan_to_num(torch.inf).argmax()
    at = tuple(int(i) for i in torch.unravel_index(worst, expected.shape))
    assert rms <= allowed[0] and peak <= allowed[1], (
        f"{name}: rms {rms:.2e} of {allowed[0]:.2e}, max {peak:.2e} of {allowed[1]:.2e} at {at}: "
        f"{actual[at].item()} against {expected[at].item()}"
    )
