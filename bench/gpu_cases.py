# SPDX-License-Identifier: Apache-2.0
"""What attention_gpu.py measures: the cases, their inputs, their work and what they should reach.

Letters: B batch, T tokens, Hq/Hkv query and key heads, D head size. A packed case has lengths, and
its T is their sum.
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

# Multiply-adds count twice. Forward: q.k, r.k, p v and (p t) v, 2 D each. Backward: eight products,
# those of one pass; two passes do eleven.
FLOPS_PER_PAIR_AND_DIM = {"forward": 8, "backward": 16}


@dataclass(frozen=True)
class Target:
    """Bounds of one quantity of a result; `goal` is what is hoped for beyond `limit`."""

    quantity: str
    limit: float
    goal: float | None = None
    at_least: bool = True

    def is_met(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound


@dataclass(frozen=True)
class Case:
    name: str
    batch: int
    tokens: int
    heads: int
    heads_kv: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16
    causal: bool = True
    window: int | None = None
    lengths: tuple[int, ...] = ()
    call: str = "forward"
    targets: tuple[Target, ...] = ()
    # (other case, share): this case's rate per visible pair is at least that share of the other's.
    relative_to: tuple[str, float] | None = None

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def shape(self) -> str:
        sizes = (self.batch, self.heads, self.heads_kv, self.tokens, self.head_dim)
        return "(" + ",".join(map(str, sizes)) + ")"

    @property
    def mask(self) -> str:
        text = "causal" if self.causal else "full"
        text += f", window {self.window}" if self.window is not None else ""
        return text + (f", {len(self.lengths)} packed" if self.lengths else "")

    @property
    def visible_pairs(self) -> float:
        """(query, key) pairs of all heads. A dense causal mask counts as T^2 / 2, as usual."""
        if self.lengths or self.window is not None:
            lengths = self.lengths or (self.tokens,) * self.batch
            pairs = sum(self._exact_pairs(length) for length in lengths)
        else:
            pairs = self.batch * self.tokens**2 / (2 if self.causal else 1)
        return pairs * self.heads

    def _exact_pairs(self, length: int) -> int:
        if not self.causal:
            return length * length
        window = min(length, self.window or length)
        return window * (window + 1) // 2 + (length - window) * window

    @property
    def flops(self) -> float:
        return FLOPS_PER_PAIR_AND_DIM[self.call] * self.head_dim * self.visible_pairs


class Inputs(NamedTuple):
    """[B, T, H, D], or packed [T, H, D] with cu_seqlens int32."""

    q: Tensor
    r: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens: Tensor | None = None

    def by_heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as views [B, H, T, D]."""
        return tuple(x.transpose(1, 2) for x in (self.q, self.k, self.v))


def make_inputs(case: Case, device: torch.device, seed: int = 1) -> Inputs:
    """Standard normal values, the same in every run on one kind of device."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = (case.tokens,) if case.lengths else (case.batch, case.tokens)

    def normal(heads):
        shape = (*rows, heads, case.head_dim)
        return torch.randn(shape, generator=generator, device=device, dtype=case.dtype)

    counts = (case.heads, case.heads, case.heads_kv, case.heads_kv)
    return Inputs(*map(normal, counts), cu_seqlens=boundaries(case, device))


def boundaries(case: Case, device: torch.device) -> Tensor | None:
    if not case.lengths:
        return None
    ends = torch.tensor((0, *case.lengths)).cumsum(0)
    return ends.to(device=device, dtype=torch.int32)


# ---- the list ---------------------------------------------------------------------------------

SIZES = ((16, 1024), (4, 4096), (1, 16384))
# TFLOP/s, limit and goal, at each of SIZES.
RATES = {128: ((450, 490), (600, 645), (680, 705)), 64: ((350, 430), (460, 540), (500, 580))}
# Our time over cuDNN's for softmax attention of the same head size, which is half the work.
TIMES_CUDNN = (2.0, 1.8, 1.7)
# At a head size of 128. At 64 FLA's kernel runs at over half of a matrix product's rate.
SPEEDUP_OVER_FLA = 2.3
MODEL_DIM = 2048  # heads x head size


def _dense_cases():
    for head_dim, rates in RATES.items():
        for (batch, tokens), rate, times_cudnn in zip(SIZES, rates, TIMES_CUDNN, strict=True):
            heads = MODEL_DIM // head_dim
            targets = [
                Target("tflops", *rate),
                Target("time_over_cudnn", times_cudnn, at_least=False),
            ]
            if head_dim == 128:
                targets.append(Target("speedup_over_fla", SPEEDUP_OVER_FLA))
            name = f"d{head_dim}_causal_{batch}x{tokens}"
            yield Case(name, batch, tokens, heads, heads, head_dim, targets=tuple(targets))


def _other_cases():
    at_2k, at_4k, at_16k = (f"d128_causal_{size}" for size in ("8x2048", "4x4096", "1x16384"))
    yield Case(at_2k, 8, 2048, 16, 16, 128)
    for head_dim in (96, 192, 256):
        heads = round(MODEL_DIM / head_dim)
        yield Case(f"d{head_dim}_causal_4x4096", 4, 4096, heads, heads, head_dim)
    base = Case("", 4, 4096, 16, 16, 128)
    yield replace(base, name="d128_full_4x4096", causal=False, relative_to=(at_4k, 0.95))
    yield replace(base, name="d128_gqa_4x4096", heads_kv=8, relative_to=(at_4k, 0.95))
    lengths = packed_lengths(16384, 512, 4096)
    packed = replace(base, batch=1, tokens=sum(lengths), lengths=lengths)
    # Sequences of 512 to 4096 tokens, beside as many of 2048.
    yield replace(packed, name="d128_varlen_16k", relative_to=(at_2k, 0.95))
    windowed = replace(base, batch=1, tokens=16384, window=1024)
    yield replace(windowed, name="d128_window1024_1x16384", relative_to=(at_16k, 0.80))
    yield replace(base, name="d128_float16_4x4096", dtype=torch.float16)


def packed_lengths(total: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Lengths evenly drawn from [shortest, longest] with a sum of about `total`."""
    generator = torch.Generator().manual_seed(1)
    lengths: list[int] = []
    while sum(lengths) < total - shortest:
        drawn = torch.randint(shortest, longest + 1, (), generator=generator).item()
        lengths.append(int(min(drawn, max(shortest, total - sum(lengths)))))
    return tuple(lengths)


# Of the backward: TFLOP/s, limit and goal; at a head size of 64 none at 1024 tokens.
GRADIENT_RATES = {
    "d128_causal_16x1024": (335, 380),
    "d128_causal_4x4096": (425, 455),
    "d128_causal_1x16384": (455, 485),
    "d64_causal_4x4096": (360, 420),
    "d64_causal_1x16384": (390, 450),
}
# Forward and backward at 4 x 4096 tokens and a head size of 128, limit and goal.
TRAINING_TIME_CUDNN, TRAINING_SPEEDUP_FLA = (1.75, 1.6), (3.15, 3.4)


def backward_cases() -> list[Case]:
    """The forward's, as far as the head size is built, with the targets of the backward."""
    cases = []
    for case in [*_dense_cases(), *_other_cases()]:
        if case.head_dim > 128:
            continue
        targets = []
        if case.name in GRADIENT_RATES:
            targets.append(Target("tflops", *GRADIENT_RATES[case.name]))
        if case.name == "d128_causal_4x4096":
            targets.append(Target("training_time_over_cudnn", *TRAINING_TIME_CUDNN, at_least=False))
            targets.append(Target("training_speedup_over_fla", *TRAINING_SPEEDUP_FLA))
        relative_to = case.relative_to and (case.relative_to[0], 0.92)
        cases.append(
            replace(case, call="backward", targets=tuple(targets), relative_to=relative_to)
        )
    heads = replace(cases[1], name="d128_gqa8_4x4096", heads=32, heads_kv=4, targets=())
    return [*cases, replace(heads, relative_to=("d128_causal_4x4096", 0.92))]


QUICK = r"^(d128_causal_.*|d64_causal_4x4096|d128_gqa_4x4096)$"


def select_cases(
    pattern: str = "", *, backward: bool = False, quick: bool = False, small: bool = False
) -> list[Case]:
    """The cases whose names match, in an order in which `relative_to` looks back."""
    cases = backward_cases() if backward else [*_dense_cases(), *_other_cases()]
    if quick:
        cases = [case for case in cases if re.search(QUICK, case.name)]
    cases = [case for case in cases if re.search(pattern, case.name)]
    return [shrunk(case) for case in cases] if small else cases


def shrunk(case: Case) -> Case:
    """The same kind of case in a size that any machine computes at once; without targets."""
    lengths = tuple(length // 16 for length in case.lengths)
    heads = 4 if case.heads % 2 == 0 else 3
    return replace(
        case,
        batch=min(case.batch, 2),
        tokens=sum(lengths) if lengths else max(case.tokens // 32, 96),
        lengths=lengths,
        heads=heads,
        heads_kv=max(heads * case.heads_kv // case.heads, 1),
        window=case.window and case.window // 32,
        targets=(),
        relative_to=None,
    )
