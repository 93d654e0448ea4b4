# SPDX-License-Identifier: Apache-2.0
"""Gradients of attention on a GPU: against float64 first, then the time, beside peers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpu_calls import (
    AbsentError,
    Candidate,
    backend_of,
    make_peer,
    ours_for_inference,
    poisoned_memory,
)
from gpu_cases import Case, Inputs, make_inputs
from gpu_reference import not_finite, sequences_of, visible_keys
from gpu_run import one_line
from gpu_timing import TimingOptions, time_call
from torch import Tensor

NAMES = ("dq", "dr", "dk", "dv")
CHUNK = 2048  # query rows of the truth at once

# Twice what kernels with sums in float32 and weights rounded to the dtype have on these inputs, as
# rms of the difference over rms of the truth.
ALLOWED = {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 2e-5}


PEERS = ("cudnn", "fla")


@dataclass
class Differentiable:
    """A candidate of gpu_calls on tensors of its own, whose gradients are timed."""

    candidate: Candidate
    leaves: tuple[Tensor, ...]
    d_out: Tensor

    def forward(self) -> Tensor:
        (out,) = self.candidate.results().values()
        return out

    def backward(self) -> Callable[[], tuple[Tensor, ...]]:
        out = self.forward()

        def run():
            return torch.autograd.grad(out, self.leaves, self.d_out, retain_graph=True)

        return run


def leaves_of(inputs: Inputs) -> Inputs:
    return inputs._replace(
        **{name: getattr(inputs, name).clone().requires_grad_() for name in "qrkv"}
    )


def ours(case: Case, inputs: Inputs, d_out: Tensor) -> Differentiable:
    """Where gradients are recorded, the call without statistics saves them all the same."""
    leaves = leaves_of(inputs)
    return Differentiable(ours_for_inference(case, leaves), leaves[:4], d_out)


def peer(name: str, case: Case, inputs: Inputs, d_out: Tensor) -> Differentiable:
    """The peer after a first call of its forward. Raises AbsentError."""
    if name not in PEERS:
        raise AbsentError("its gradients are not timed")
    leaves = leaves_of(inputs)
    candidate, _ = make_peer(name, case, leaves)
    is_parallax = name == "fla"
    return Differentiable(
        candidate, leaves[:4] if is_parallax else (leaves.q, leaves.k, leaves.v), d_out
    )


def make_gradient_inputs(case: Case, device: torch.device) -> tuple[Inputs, Tensor]:
    inputs = make_inputs(case, device)
    generator = torch.Generator(device).manual_seed(7)
    d_out = torch.randn(inputs.q.shape, generator=generator, device=device).to(case.dtype)
    return inputs, d_out


def heads_to_check(case: Case) -> list[tuple[int, int]]:
    """(sequence, key head): the first and the last."""
    last = (len(sequences_of(case)) - 1, case.heads_kv - 1)
    return sorted({(0, 0), last})


def true_gradients(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    """float64, of one key head and the query heads that share it. q, r, d_out [G, T, D]; k, v
    [T, D]; dq and dr like q, dk and dv like k."""
    q, r, k, v, d_out = (x.double() for x in tensors)
    scale = case.head_dim**-0.5
    d_q, d_r = torch.zeros_like(q), torch.zeros_like(r)
    d_k, d_v = torch.zeros_like(k), torch.zeros_like(v)
    for head in range(len(q)):
        for first in range(0, q.shape[1], CHUNK):
            rows = slice(first, min(first + CHUNK, q.shape[1]))
            qs, rs, gs = q[head, rows], r[head, rows], d_out[head, rows]
            tokens = torch.arange(rows.start, rows.stop, device=k.device)
            visible = visible_keys(case, tokens, len(k))
            p = (qs @ k.T * scale).masked_fill(~visible, -torch.inf).softmax(-1)
            t = rs @ k.T
            a = 1 + (p * t).sum(-1, keepdim=True) - t
            g = gs @ v.T
            g_mean = (p * g).sum(-1, keepdim=True)
            out_gradient = (p * a * g).sum(-1, keepdim=True)
            ds = scale * (p * a * (g - g_mean) + p * (g_mean - out_gradient))
            dt = -p * (g - g_mean)
            d_q[head, rows], d_r[head, rows] = ds @ k, dt @ k
            d_k += ds.T @ qs + dt.T @ rs
            d_v += (p * a).T @ gs
    return [d_q, d_r, d_k, d_v]


def gradient_errors(case: Case, inputs: Inputs, d_out: Tensor, gradients) -> dict[str, float]:
    """rms(difference) / rms(truth) over the heads that are checked."""
    squares = {name: [0.0, 0.0] for name in NAMES}
    group = case.heads // case.heads_kv
    for sequence, head in heads_to_check(case):
        first, length = sequences_of(case)[sequence]

        def of_group(x: Tensor, first=first, length=length, sequence=sequence, head=head) -> Tensor:
            x = x[first : first + length] if case.lengths else x[sequence]
            return x[:, head * group : (head + 1) * group].transpose(0, 1)

        def of_head(x: Tensor, first=first, length=length, sequence=sequence, head=head) -> Tensor:
            return (x[first : first + length] if case.lengths else x[sequence])[:, head]

        truth = true_gradients(
            case,
            [
                of_group(inputs.q),
                of_group(inputs.r),
                of_head(inputs.k),
                of_head(inputs.v),
                of_group(d_out),
            ],
        )
        takes = (of_group, of_group, of_head, of_head)
        for name, take, actual, expected in zip(NAMES, takes, gradients, truth, strict=True):
            difference = take(actual).double() - expected
            squares[name][0] += difference.square().sum().item()
            squares[name][1] += expected.square().sum().item()
    return {name: (wrong / true) ** 0.5 for name, (wrong, true) in squares.items()}


def wrong_gradients(case: Case, errors: dict[str, float], factor: float = 1.0) -> list[str]:
    allowed = factor * ALLOWED[case.dtype]
    return [
        f"{name}: rms error {error:.2e}, allowed {allowed:.1e}"
        for name, error in errors.items()
        if not error <= allowed
    ]


def time_training(
    candidate: Differentiable, device: torch.device, timing: TimingOptions
) -> dict[str, object]:
    """Of the forward that saves for the backward, and of the backward by itself."""
    forward = time_call(candidate.forward, device, timing)
    backward = time_call(candidate.backward(), device, timing)
    return {
        "forward_ms": forward.ms,
        "ms": backward.ms,
        "quartiles_ms": backward.quartiles_ms,
        "rounds": backward.runs,
    }


def run_peer(name: str, case: Case, inputs: Inputs, d_out: Tensor) -> Differentiable:
    """The peer after a first call, FLA's with its gradients checked. Raises AbsentError."""
    differentiable = peer(name, case, inputs, d_out)
    try:
        gradients = differentiable.backward()()
        if inputs.q.device.type == "cuda":
            torch.cuda.synchronize()
    except Exception as error:  # anything that another library may raise
        raise AbsentError(one_line(error)) from error
    if name == "fla":
        # Theirs to improve; ours to not time nonsense.
        wrong = wrong_gradients(case, gradient_errors(case, inputs, d_out, gradients), factor=5)
        if wrong:
            raise AbsentError(f"its result is wrong: {wrong[0]}")
    return differentiable


def measure(
    case: Case, device: torch.device, timing: TimingOptions, peers: list[str]
) -> dict[str, object]:
    """A row of the result file; with "wrong" instead of times if the gradients are."""
    row: dict[str, object] = {
        "call": case.call,
        "case": case.name,
        "dtype": case.dtype_name,
        "shape": case.shape,
        "mask": case.mask,
    }
    inputs, d_out = make_gradient_inputs(case, device)
    with torch.enable_grad():
        candidate = ours(case, inputs, d_out)
        row["backend"] = backend_of(candidate.backward())
        with poisoned_memory():
            gradients = candidate.backward()()
        row["errors"] = gradient_errors(case, inputs, d_out, gradients)
        wrong = wrong_gradients(case, row["errors"])
        wrong += not_finite(dict(zip(NAMES, gradients, strict=True)))
        if wrong:
            return {**row, "wrong": wrong}
        del gradients
        row |= time_training(candidate, device, timing)
        row["tflops"] = 1e-9 * case.flops / row["ms"]
        training_ms = row["forward_ms"] + row["ms"]
        for name in peers:
            try:
                other = run_peer(name, case, inputs, d_out)
            except AbsentError as reason:
                row.setdefault("absent", {})[name] = str(reason)
                continue
            times = time_training(other, device, timing)
            row.setdefault("peers", {})[name] = times
            over = training_ms / (times["forward_ms"] + times["ms"])
            row.setdefault("training_time_over", {})[name] = over
    return row


def quantities(row: dict[str, object]) -> dict[str, float | None]:
    """What the targets are about."""
    over = row.get("training_time_over", {})
    return {
        "tflops": row["tflops"],
        "training_time_over_cudnn": over.get("cudnn"),
        "training_speedup_over_fla": 1 / over["fla"] if "fla" in over else None,
    }


def print_header() -> None:
    print(f"{'case':<24}{'(B,Hq,Hkv,T,D)':<21}{'ms':>8}{'TFLOP/s':>9}{'forward':>9}"
          f"{'x cudnn':>9}{'fla x':>7}  {'backend':<14}targets")  # fmt: skip


def print_row(row: dict[str, object], targets: str) -> None:
    values = quantities(row)
    cudnn_text, fla_text = (
        "-" if values[name] is None else f"{values[name]:.2f}"
        for name in ("training_time_over_cudnn", "training_speedup_over_fla")
    )
    text = f"{row['case']:<24}{row['shape']:<21}{row['ms']:8.3f}{row['tflops']:9.1f}"
    text += f"{row['forward_ms']:9.3f}{cudnn_text:>9}{fla_text:>7}  {row['backend']:<14}{targets}"
    print(text)
    errors = ", ".join(f"{name} {error:.1e}" for name, error in row["errors"].items())
    low, high = row["quartiles_ms"]
    print(f"    rms errors: {errors}; quartiles {low:.3f} to {high:.3f} ms of {row['rounds']} runs")
    for name, times in row.get("peers", {}).items():
        print(f"    {name}: forward {times['forward_ms']:.3f} ms, backward {times['ms']:.3f} ms")
    for name, reason in row.get("absent", {}).items():
        print(f"    {name} is absent: {reason}")
