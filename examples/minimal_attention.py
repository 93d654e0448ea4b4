# SPDX-License-Identifier: Apache-2.0
"""Parallax attention in a few lines: forward, backward, and decoding the last token from a cache.

Run it with the repository's Python after a build: .venv/bin/python examples/minimal_attention.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import parallax

torch.manual_seed(0)
batch, tokens, query_heads, key_heads, head_dim = 2, 128, 8, 2, 64
q, r = (torch.randn(batch, tokens, query_heads, head_dim, requires_grad=True) for _ in range(2))
k, v = (torch.randn(batch, tokens, key_heads, head_dim, requires_grad=True) for _ in range(2))

out = parallax.attention(q, r, k, v)  # causal, scale = head_dim ** -0.5
out.square().mean().backward()
print("out", tuple(out.shape), " gradient of the probe r", tuple(r.grad.shape))

with torch.no_grad():
    last = parallax.decode(q[:, -1:], r[:, -1:], k, v)  # one new token; k and v are the cache
    softmax = parallax.attention(q, torch.zeros_like(r), k, v)  # r = 0 is softmax attention
print(f"difference between decode and the last row: {(last - out[:, -1:]).abs().max():.1e}")
print(f"difference that the probe makes: {(out - softmax).abs().mean():.3f}")
