#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""norm_rope and swiglu on a GPU: first the results against float64, then the rate of memory.

Beside the same expression composed of PyTorch's ops, eager and under torch.compile, and beside a
copy kernel, which is what the memory gives. Times are of CUDA graphs, so that the host costs
nothing; on the CPU they are of plain calls.
"""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gpu_calls import parallax, poisoned_memory
from gpu_run import append, describe_run, one_line, open_device
from gpu_timing import TimingOptions, time_call, time_graph
from torch import Tensor

EPILOG = """\
GB/s: each element that must be read or written counted once, the gain and the tables too. copy: its
share of the rate of y.copy_(x). both: forward and backward, with the saved inputs read again.

examples:
  python3 bench/row_ops_gpu.py --output rows.jsonl --commit 1a2b3c4
  python3 bench/row_ops_gpu.py --cases swiglu --peers eager
  python3 bench/row_ops_gpu.py --device cpu --small --peers eager   # the program, without a GPU
"""
PEERS = ("eager", "compile")
COPY_BYTES = 1 << 30  # read and written together: far more than a cache holds
ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 2**-23}
ROUNDINGS_ALLOWED = 4  # of the largest element of a result


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, ...]
    norm: bool = False  # neither: SwiGLU
    rotate: bool = False
    dtype: torch.dtype = torch.bfloat16  # of what is read
    out_dtype: torch.dtype = torch.bfloat16


CASES = (
    Case("norm_1024", (65536, 1024), norm=True),
    Case("norm_2048_from_float32", (32768, 2048), norm=True, dtype=torch.float32),
    Case("norm_4096", (32768, 4096), norm=True),
    Case("norm_8192", (16384, 8192), norm=True),
    Case("norm_rope_16_heads", (8, 4096, 16, 128), norm=True, rotate=True),
    Case("norm_rope_8_heads", (16, 4096, 8, 128), norm=True, rotate=True),
    Case("rope_16_heads", (8, 4096, 16, 128), rotate=True),
    Case("norm_16_heads", (8, 4096, 16, 128), norm=True),
    Case("swiglu_3072", (32768, 3072)),
    Case("swiglu_12288", (8192, 12288)),
)


def make_inputs(case: Case, device: torch.device) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What is differentiated, tables, and dy."""
    torch.manual_seed(1)

    def randn(*shape, dtype=case.dtype):
        return torch.randn(shape, device=device, dtype=dtype)

    leaves = [randn(*case.shape)]
    tables = []
    if case.norm:
        leaves.append(randn(case.shape[-1]))
    elif not case.rotate:
        leaves.append(randn(*case.shape))
    if case.rotate:
        angles = 3 * randn(case.shape[1], case.shape[-1] // 2, dtype=torch.float32)
        tables = [angles.cos(), angles.sin()]
    return leaves, tables, randn(*case.shape, dtype=case.out_dtype)


def ours(case: Case, tables: list[Tensor]) -> Callable[..., Tensor]:
    if not (case.norm or case.rotate):
        return parallax.swiglu
    named = dict(zip(("cos", "sin"), tables, strict=False))
    return lambda x, gain=None: parallax.norm_rope(x, gain, **named, dtype=case.out_dtype)


def composed(case: Case, tables: list[Tensor]) -> Callable[..., Tensor]:
    """The expression in PyTorch's ops, computed in float32 or wider and rounded once."""

    def swiglu(gate, up):
        wide = torch.promote_types(gate.dtype, torch.float32)
        return (torch.nn.functional.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)

    def norm_rope(x, gain=None):
        wide = torch.promote_types(x.dtype, torch.float32)
        y = x.to(wide)
        if gain is not None:
            y = torch.nn.functional.rms_norm(y, (y.shape[-1],), gain.to(wide), 1e-6)
        if tables:
            cos, sin = (table.to(wide)[:, None] for table in tables)
            low, high = y.chunk(2, -1)
            y = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
        return y if x.dtype == torch.float64 else y.to(case.out_dtype)

    return norm_rope if case.norm or case.rotate else swiglu


def with_gradients(function, leaves: list[Tensor], dy: Tensor) -> list[Tensor]:
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def faults(results: list[Tensor], truth: list[Tensor]) -> list[str]:
    """What is further from the truth than roundings explain; a NaN always is."""
    found = []
    for index, (result, expected) in enumerate(zip(results, truth, strict=True)):
        size = expected.abs().max().item()
        error = ((result.double() - expected).abs().max() / size).item()
        allowed = ROUNDINGS_ALLOWED * max(ROUNDING[result.dtype], 1e-6)
        if not error <= allowed:
            name = "the result" if index == 0 else f"gradient {index}"
            found.append(f"{name}: error {error:.1e} of the largest element, {allowed:.1e} allowed")
    return found


class Benchmark:
    def __init__(self, options: argparse.Namespace, device: torch.device):
        self.options, self.device = options, device
        self.timing = TimingOptions()
        if options.small:
            self.timing = TimingOptions(warm_up_ms=1, min_runs=3, total_ms=1)

    def milliseconds(self, run: Callable) -> tuple[float, tuple[float, float]]:
        timed = time_graph if self.device.type == "cuda" else time_call
        timing = timed(run, self.device, self.timing)
        return timing.ms, timing.quartiles_ms

    def copy_rate(self) -> float:
        """GB/s, read and written."""
        num_bytes = 1 << 20 if self.options.small else COPY_BYTES
        x = torch.zeros(num_bytes // 2, dtype=torch.uint8, device=self.device)
        y = torch.empty_like(x)
        return 1e-6 * num_bytes / self.milliseconds(lambda: y.copy_(x))[0]

    def run_case(self, case: Case) -> dict[str, object]:
        """A row of the result file; with "wrong" instead of times if the result is."""
        row: dict[str, object] = {"case": case.name, "shape": case.shape}
        leaves, tables, dy = make_inputs(case, self.device)
        truth = with_gradients(
            composed(case, tables), [x.double().requires_grad_() for x in leaves], dy.double()
        )
        leaves = [x.requires_grad_() for x in leaves]
        function = ours(case, tables)
        with poisoned_memory():
            wrong = faults(with_gradients(function, leaves, dy), truth)
        del truth
        if wrong:
            return {**row, "wrong": wrong}
        sizes = [x.numel() * x.element_size() for x in leaves]
        shared = sum(x.numel() * x.element_size() for x in tables)
        out = dy.numel() * dy.element_size()
        row["bytes"] = {
            "forward": sum(sizes) + out + shared,
            "both": 3 * sum(sizes) + 2 * out + 2 * shared,  # inputs twice, their gradients once
        }
        row["copy_gb_per_s"] = self.copy_rate()
        self.time("ours", function, leaves, dy, row)
        for name in self.options.peers:
            peer = composed(case, tables)
            try:
                if name == "compile":
                    torch._dynamo.reset()
                    peer = torch.compile(peer, fullgraph=True)
                self.time(name, peer, leaves, dy, row)
            except Exception as error:  # a peer may fail in any way, and stops nothing
                row.setdefault("absent", {})[name] = one_line(error)
        return row

    def time(self, name: str, function, leaves: list[Tensor], dy: Tensor, row: dict) -> None:
        def forward():
            with torch.no_grad():
                return function(*leaves)

        runs = {"forward": forward, "both": lambda: with_gradients(function, leaves, dy)}
        results = {}
        for part, run in runs.items():
            ms, quartiles = self.milliseconds(run)
            rate = 1e-6 * row["bytes"][part] / ms
            results[part] = {"ms": ms, "quartiles_ms": quartiles, "gb_per_s": rate,
                             "share_of_copy": rate / row["copy_gb_per_s"]}  # fmt: skip
        row.setdefault("times", {})[name] = results


def print_row(row: dict[str, object]) -> None:
    print(f"{row['case']} {row['shape']}, copy {row['copy_gb_per_s']:.0f} GB/s")
    for name, parts in row["times"].items():
        text = "  ".join(
            f"{part} {x['ms']:.4f} ms ({x['quartiles_ms'][0]:.4f} to {x['quartiles_ms'][1]:.4f}),"
            f" {x['gb_per_s']:.0f} GB/s, copy {100 * x['share_of_copy']:.0f}%"
            for part, x in parts.items()
        )
        print(f"    {name:<8} {text}")
    for name, reason in row.get("absent", {}).items():
        print(f"    {name} is absent: {reason}")
    sys.stdout.flush()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", default="", metavar="REGEX", help="cases whose names match")
    add("--small", action="store_true", help="tiny sizes, to try the program")
    add("--device", default="cuda", help="cuda, cuda:1 or cpu")
    add("--peers", default=",".join(PEERS), help="any of eager and compile, or none")
    add("--output", type=Path, help="append one JSON object per case to this file")
    add("--commit", default="unknown", help="for the JSON: what was built")
    options = parser.parse_args(arguments)
    options.peers = [name for name in options.peers.split(",") if name not in ("", "none")]
    unknown = set(options.peers) - set(PEERS)
    if unknown:
        parser.error(f"--peers: there is no {', '.join(sorted(unknown))}")
    return options


def select_cases(options: argparse.Namespace) -> list[Case]:
    def small(case: Case) -> Case:
        shape = (2, 16, *case.shape[2:]) if len(case.shape) == 4 else (32, *case.shape[1:])
        return replace(case, shape=shape)

    cases = [case for case in CASES if re.search(options.cases, case.name)]
    return [small(case) for case in cases] if options.small else cases


def main() -> int:
    options = parse_arguments()
    cases = select_cases(options)
    if not cases:
        print(f"row_ops_gpu: no case matches '{options.cases}'", file=sys.stderr)
        return 1
    device = open_device("row_ops_gpu", options.device)
    if device is None:
        return 1
    about = describe_run(options, device)
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    benchmark, all_right = Benchmark(options, device), True
    for case in cases:
        try:
            row = benchmark.run_case(case)
        except Exception as error:  # the other cases still count
            row = {"case": case.name, "wrong": [one_line(error)]}
        if "wrong" in row:
            all_right = False
            print(f"{case.name} WRONG, not timed:\n    " + "\n    ".join(row["wrong"]), flush=True)
        else:
            print_row(row)
        append(options.output, row | about)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main())
