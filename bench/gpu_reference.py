# SPDX-License-Identifier: Apache-2.0
"""The truth in float64 for some rows of attention, and the distance of a result from it.

out_i = sum_j p_ij (1 + t_mean_i - t_ij) v_j and its companions, as in include/parallax/attention.h.
The scale of a row's output falls with the number of keys it sees, so that the first rows of a
sequence would hide an error in all later ones: errors of `out` and `out_softmax` are relative to
their own row.
"""

from dataclasses import dataclass

import torch
from gpu_cases import Case, Inputs
from torch import Tensor

NAMES = ("out", "out_softmax", "lse", "t_mean")


@dataclass
class Rows:
    """Some query rows of one head of one sequence, and what they should give."""

    sequence: int
    head: int
    rows: Tensor  # token indices within the sequence
    first_token: int  # of the sequence, in packed tensors
    truth: dict[str, Tensor]
    t_spread: Tensor  # standard deviation of t over the visible keys, weighted by p

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """The same rows of a computed tensor."""
        tokens = self.rows + self.first_token
        if name in ("lse", "t_mean"):
            is_packed = tensor.dim() == 2
            return (
                tensor[self.head][tokens] if is_packed else tensor[self.sequence, self.head, tokens]
            )
        is_packed = tensor.dim() == 3
        return tensor[tokens, self.head] if is_packed else tensor[self.sequence, tokens, self.head]


@dataclass
class Error:
    rms: float
    max: float
    at: list[int]  # of the largest: sequence, head, token[, element]
    actual: float = 0.0
    expected: float = 0.0


def visible_keys(case: Case, rows: Tensor, num_keys: int) -> Tensor:
    """[rows, keys]: which keys the query rows of a sequence see."""
    key = torch.arange(num_keys, device=rows.device)
    visible = torch.ones(len(rows), num_keys, dtype=torch.bool, device=rows.device)
    if case.causal:
        visible &= key <= rows[:, None]
    if case.window is not None:
        visible &= key > rows[:, None] - case.window
    return visible


def rows_truth(case: Case, q: Tensor, r: Tensor, k: Tensor, v: Tensor, *, rows: Tensor):
    """The four results and t's spread, float64, of the given rows of q and r [T, D]."""
    q, r = q[rows].double(), r[rows].double()
    k, v = k.double(), v.double()
    visible = visible_keys(case, rows, len(k))
    s = (q @ k.T * case.head_dim**-0.5).masked_fill(~visible, -torch.inf)
    t = r @ k.T
    lse = s.logsumexp(-1)
    p = (s - lse[:, None]).exp()
    t_mean = (p * t).sum(-1)
    centred = t - t_mean[:, None]
    out_softmax = p @ v
    truth = {
        "out": out_softmax - (p * centred) @ v,
        "out_softmax": out_softmax,
        "lse": lse,
        "t_mean": t_mean,
    }
    return truth, (p * centred.square()).sum(-1).sqrt()


def sequences_of(case: Case) -> list[tuple[int, int]]:
    """(first token in a packed tensor, number of tokens) of each sequence."""
    if not case.lengths:
        return [(0, case.tokens)] * case.batch
    firsts = [sum(case.lengths[:i]) for i in range(len(case.lengths))]
    return list(zip(firsts, case.lengths, strict=True))


def sample(case: Case, inputs: Inputs, num_heads: int = 16, num_rows: int = 24) -> list[Rows]:
    """Rows of up to `num_heads` heads, the first and the last head and row among them."""
    generator = torch.Generator().manual_seed(2)
    sequences = sequences_of(case)
    total = len(sequences) * case.heads
    picks = torch.linspace(0, total - 1, min(num_heads, total)).round().long().unique().tolist()
    group = case.heads // case.heads_kv
    samples = []
    for pick in picks:
        sequence, head = divmod(pick, case.heads)
        first, length = sequences[sequence]
        if num_rows >= length:
            rows = torch.arange(length)
        else:
            edges = torch.tensor([0, 1, 2, length - 2, length - 1])
            drawn = torch.randint(0, length, (num_rows,), generator=generator)
            rows = torch.cat([edges, drawn]).clamp(0, length - 1).unique()
        rows = rows.to(inputs.q.device)
        tensors = []
        for index, tensor in enumerate(inputs[:4]):
            of_sequence = tensor[first : first + length] if case.lengths else tensor[sequence]
            tensors.append(of_sequence[:, head if index < 2 else head // group])
        truth, t_spread = rows_truth(case, *tensors, rows=rows)
        samples.append(Rows(sequence, head, rows, first if case.lengths else 0, truth, t_spread))
    return samples


def relative_errors(name: str, rows: Rows, actual: Tensor) -> Tensor:
    """|difference| of each element in the unit of its kind; infinite where it is not finite."""
    expected = rows.truth[name]
    difference = (actual.double() - expected).abs()
    if name == "t_mean":
        difference = difference / (1 + rows.t_spread)
    elif name != "lse":
        difference = difference / expected.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    return difference.nan_to_num(torch.inf, torch.inf)


def compare(samples: list[Rows], results: dict[str, Tensor]) -> dict[str, Error]:
    """Per tensor: the rms of the errors, the largest, and where that is.

    out, out_softmax: relative to the largest element of the row; the rms to the row's rms.
    lse: absolute. t_mean: relative to 1 + the spread of t.
    """
    errors = {}
    for name, tensor in results.items():
        squares, count, worst = 0.0, 0, Error(0.0, -1.0, [])
        for rows in samples:
            actual, expected = rows.take(name, tensor), rows.truth[name]
            error = relative_errors(name, rows, actual)
            unit = 1.0
            if name.startswith("out"):  # from the unit of the maximum to that of the rms
                peak = expected.abs().amax(-1, keepdim=True)
                unit = peak / expected.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)
            squares += (error * unit).square().sum().item()
            count += error.numel()
            if error.max().item() > worst.max:
                at = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
                place = [rows.sequence, rows.head, int(rows.rows[at[0]]), *at[1:]]
                values = (actual[tuple(at)].item(), expected[tuple(at)].item())
                worst = Error(0.0, error.max().item(), place, *values)
        worst.rms = (squares / count) ** 0.5
        errors[name] = worst
    return errors


def total_rms(samples: list[Rows], out: Tensor) -> float:
    """rms(difference) / rms(truth) of `out` over all sampled rows together."""
    difference = truth = 0.0
    for rows in samples:
        expected = rows.truth["out"]
        difference += (rows.take("out", out).double() - expected).square().sum().item()
        truth += expected.square().sum().item()
    return (difference / truth) ** 0.5


# rms and largest error that a result may have to be timed: twice what kernels with sums in float32
# and weights rounded to the dtype have on these inputs. float16 rounds 8 times finer than bfloat16.
ALLOWED_OUT = {
    torch.bfloat16: (6e-3, 4e-2),
    torch.float16: (8e-4, 5e-3),
    torch.float32: (2e-5, 2e-4),
}
ALLOWED_STATISTICS = {"lse": 2e-5, "t_mean": 1e-4}


def not_finite(results: dict[str, Tensor]) -> list[str]:
    """What is wrong with a result that has NaNs or infinities, wherever they are."""
    return [
        f"{name}: {count} elements are not finite"
        for name, x in results.items()
        if (count := int((~x.isfinite()).sum())) > 0
    ]


def refusals(case: Case, errors: dict[str, Error], factor: float = 1.0) -> list[str]:
    """What is wrong with a result; empty if nothing is. `factor` widens the limits, for peers."""
    texts = []
    for name, error in errors.items():
        if name in ALLOWED_STATISTICS:
            allowed = (ALLOWED_STATISTICS[name],) * 2
        else:
            allowed = ALLOWED_OUT[case.dtype]
        for kind, value, limit in zip(("rms", "max"), (error.rms, error.max), allowed, strict=True):
            if not value <= factor * limit:
                texts.append(
                    f"{name}: {kind} error {value:.2e}, allowed {factor * limit:.1e}; the largest "
                    f"at (sequence, head, token, element) {error.at}: {error.actual} instead of "
                    f"{error.expected}"
                )
    return texts
