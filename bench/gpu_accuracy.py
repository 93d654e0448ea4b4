# SPDX-License-Identifier: Apache-2.0
"""The distance from float64 of our results and of FLA's, in regimes where kernels lose accuracy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from gpu_calls import AbsentError, make_peer, ours, poisoned_memory
from gpu_cases import Case, Inputs, make_inputs
from gpu_reference import Rows, compare, sample, total_rms
from torch import Tensor


def _unit_rms(x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * wide.square().mean(-1, keepdim=True).rsqrt()).to(x.dtype)


def _mean_t_50(x: Inputs) -> Inputs:
    """A common direction in r and k: r.k has a mean of 50."""
    common = (50 / x.r.shape[-1]) ** 0.5
    return x._replace(r=x.r + common, k=x.k + common)


def _rising_logits(x: Inputs) -> Inputs:
    """The logits rise by 1/16 per key, so that each row's largest one is in its last tile."""
    q, r, k = (tensor.clone() for tensor in (x.q, x.r, x.k))
    head_dim, tokens = q.shape[-1], k.shape[1]
    slope = head_dim**0.5 / 16 / 64
    q[..., 0], r[..., 0] = 64, 0
    rising = slope * torch.arange(tokens, device=k.device)
    k[..., 0] = rising.to(k.dtype)[None, :, None]
    return x._replace(q=q, r=r, k=k)


@dataclass(frozen=True)
class Regime:
    name: str
    change: Callable[[Inputs], Inputs]
    window: int | None = None  # 1 to 3 visible keys
    # Our error is at most this share of FLA's.
    allowed: float = 1.05


REGIMES = (
    Regime("normal", lambda x: x),
    Regime("logits x4", lambda x: x._replace(q=4 * x.q)),
    Regime("mean(v) = 2", lambda x: x._replace(v=x.v + 2)),
    Regime("mean(t) = 50", _mean_t_50, allowed=0.5),
    Regime("maximum in the last tile", _rising_logits),
    Regime("q, r, k of unit rms",
           lambda x: x._replace(q=_unit_rms(x.q), r=_unit_rms(x.r), k=_unit_rms(x.k))),
    Regime("r = 0", lambda x: x._replace(r=torch.zeros_like(x.r))),
    Regime("1 visible key", lambda x: x, window=1, allowed=0.5),
    Regime("2 visible keys", lambda x: x, window=2),
    Regime("3 visible keys", lambda x: x, window=3),
)  # fmt: skip

ALL_ROWS = 1 << 30
NONSENSE = 0.5  # an rms error above this says nothing about rounding


def accuracy_cases(small: bool, quick: bool) -> Iterator[tuple[Case, Regime]]:
    tokens = 128 if small else 512
    for head_dim in (128,) if quick else (64, 128):
        for dtype in (torch.bfloat16,) if quick else (torch.bfloat16, torch.float16):
            short = Case(f"all rows of {tokens}", 2, tokens, 4, 2, head_dim, dtype)
            length = 1024 if small else 16384
            long = Case(f"sample of {length}", 1, length, 8, 8, head_dim, dtype)
            for regime in REGIMES:
                yield replace(short, window=regime.window), regime
                if regime.window is None:
                    yield long, regime


def _sample(case: Case, inputs: Inputs) -> list[Rows]:
    if case.tokens <= 512:
        return sample(case, inputs, num_heads=ALL_ROWS, num_rows=ALL_ROWS)
    samples = sample(case, inputs, num_heads=8, num_rows=64)
    for rows in samples:  # the first rows are large enough to decide the rms of all
        is_kept = rows.rows >= 16
        rows.rows, rows.t_spread = rows.rows[is_kept], rows.t_spread[is_kept]
        rows.truth = {name: x[is_kept] for name, x in rows.truth.items()}
    return samples


def _errors(samples: list[Rows], results: dict[str, Tensor]) -> dict[str, object]:
    errors = compare(samples, results)
    return {
        "rms": total_rms(samples, results["out"]),
        "errors": {name: vars(error) for name, error in errors.items()},
    }


def measure(case: Case, regime: Regime, device: torch.device) -> dict[str, object]:
    """A row of the result file; "met" is absent without FLA's error."""
    inputs = regime.change(make_inputs(case, device))
    samples = _sample(case, inputs)
    with poisoned_memory():
        results = ours(case, inputs).results()
    row = {
        "call": "accuracy",
        "regime": regime.name,
        "case": case.name,
        "dtype": case.dtype_name,
        "shape": case.shape,
        "num_rows": sum(len(rows.rows) for rows in samples),
        **_errors(samples, results),
        "allowed_share_of_fla": regime.allowed,
    }
    try:
        _, theirs = make_peer("fla", case, inputs)
    except AbsentError as reason:
        return {**row, "absent": {"fla": str(reason)}}
    their_errors = _errors(samples, theirs)
    if not their_errors["rms"] < NONSENSE:
        return {**row, "absent": {"fla": f"its result is wrong: rms {their_errors['rms']:.1e}"}}
    row["fla_rms"], row["fla_errors"] = their_errors["rms"], their_errors["errors"]
    row["share_of_fla"] = row["rms"] / max(row["fla_rms"], 1e-30)
    row["met"] = row["rms"] <= regime.allowed * row["fla_rms"]
    return row


def print_header() -> None:
    print(f"{'regime':<26}{'case':<18}{'dtype':<10}{'D':>4} {'rms':>9} {'row rms':>9} {'max':>9}"
          f" {'fla rms':>9} {'fla max':>9} {'share':>6} {'allowed':>7}")  # fmt: skip


def print_row(row: dict[str, object]) -> None:
    out = row["errors"]["out"]
    dim = row["shape"].rstrip(")").split(",")[-1]
    text = f"{row['regime']:<26}{row['case']:<18}{row['dtype']:<10}{dim:>4}"
    text += f" {row['rms']:9.2e} {out['rms']:9.2e} {out['max']:9.2e}"
    if "met" in row:
        text += f" {row['fla_rms']:9.2e} {row['fla_errors']['out']['max']:9.2e}"
        text += f" {row['share_of_fla']:6.2f} {row['allowed_share_of_fla']:7.2f}"
        text += "  met" if row["met"] else "  MISSED"
    print(text, flush=True)
