#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Training on one GPU: tokens per second of `plx train` beside the same model in plain PyTorch.

For each size and context: softmax attention in PyTorch (train_peer.py under torch.compile, bfloat16
by autocast, torch.optim's Muon and AdamW), and the recipes' softmax and Parallax twins. The peer is
timed only if it has the loss and the gradient that plx has, from the same weights on one window.
"""

import argparse
import dataclasses
import gc
import re
import sys
import tempfile
from pathlib import Path
from statistics import quantiles

import torch
from gpu_run import append, describe_run, one_line, open_device
from train_peer import (
    Decoder,
    fastest_attention,
    load_decoder,
    loss_and_gradient_norm,
    make_step,
    time_steps,
)
from train_runs import (
    CASES,
    MIXERS,
    SMALL_CASES,
    Case,
    Check,
    Plx,
    RunError,
    find_plx,
    run_check,
    run_timed,
)

# Relative differences of loss and gradient norm between two ways of computing the same, which round
# at different places.
ALLOWED = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-3, 5e-3)}

EPILOG = """\
A step is all of it: batch, forward and backward passes, clipping, optimizer. tokens/s: the median
over steps, after --warm-up of them. MFU: the share of the device's peak that the trainer writes
into its metrics, where it knows the device; the peer's follows from its tokens/s, as it is the
softmax twin's model. x torch: tokens/s over the peer's.

examples:
  python3 bench/train_gpu.py
  python3 bench/train_gpu.py --cases 124m --output results.jsonl --commit 1a2b3c4
  python3 bench/train_gpu.py --cases 0p6b_4096 --micro-tokens 8192 --data data/python
  python3 bench/train_gpu.py --device cpu --small --no-compile  # the program itself, without a GPU
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", default="", metavar="REGEX", help="cases whose names match (--list shows them)")
    add("--list", action="store_true", help="print the cases and end")
    add("--small", action="store_true", help="a tiny model, to try the program")
    add("--device", default="cuda", choices=["cuda", "cpu"])
    add(
        "--plx", type=Path, help="the program (default: of build/release or PLX_BUILD_DIR, or PATH)"
    )
    add("--data", type=Path, help="prepared tokens to train on (default: random bytes)")
    add("--steps", type=int, default=20, help="of each run (default: 20)")
    add("--warm-up", type=int, default=5, help="how many of them are not counted (default: 5)")
    add("--micro-tokens", type=int, help="tokens of a forward pass, a multiple of the context")
    add("--no-compile", action="store_true", help="the peer without torch.compile")
    add("--output", type=Path, help="append one JSON object per candidate to this file")
    add("--commit", default="unknown", help="for the JSON: what was built")
    options = parser.parse_args(arguments)
    if not 0 <= options.warm_up <= options.steps - 2:
        parser.error("--warm-up must leave at least two of the --steps")
    if options.micro_tokens is not None and options.micro_tokens < 1:
        parser.error("--micro-tokens must be at least 1")
    try:
        re.compile(options.cases)
    except re.error as error:
        parser.error(f"--cases: {error}")
    return options


def selected_cases(options: argparse.Namespace) -> list[Case]:
    cases = SMALL_CASES if options.small else CASES
    cases = [case for case in cases if re.search(options.cases, case.name)]
    if not cases:
        sys.exit(f"train_gpu: no case matches '{options.cases}' (--list shows them)")
    if options.micro_tokens is None:
        return cases
    for case in cases:
        if options.micro_tokens % case.context or case.step_tokens % options.micro_tokens:
            sys.exit(f"train_gpu: --micro-tokens {options.micro_tokens} must be a multiple of the "
                     f"context, {case.context}, and divide a step, {case.step_tokens}")  # fmt: skip
    return [dataclasses.replace(case, micro_tokens=options.micro_tokens) for case in cases]


def compare(check: Check, loss: float, gradient_norm: float, dtype: torch.dtype) -> dict:
    """The two numbers of both programs; with "wrong" where they are not the same."""
    result: dict = {
        "loss": [check.loss, loss],
        "gradient_norm": [check.gradient_norm, gradient_norm],
    }
    pairs = {name: tuple(pair) for name, pair in result.items()}
    for (name, (ours, theirs)), allowed in zip(pairs.items(), ALLOWED[dtype], strict=True):
        if not abs(theirs - ours) <= allowed * abs(ours):
            text = f"{name}: plx has {ours:.6g}, PyTorch {theirs:.6g}, allowed {allowed:g} apart"
            result.setdefault("wrong", []).append(text)
    return result


def rates(seconds: list[float], case: Case, warm_up: int) -> dict:
    low, median, high = quantiles(seconds[warm_up:], n=4, method="inclusive")
    return {
        "tokens_per_second": case.step_tokens / median,
        "step_ms": 1e3 * median,
        "step_quartiles_ms": [1e3 * low, 1e3 * high],
        "steps": len(seconds) - warm_up,
    }


class Benchmark:
    def __init__(self, options: argparse.Namespace, device: torch.device, plx: Plx):
        self.options, self.device, self.plx = options, device, plx
        self.dtype = torch.bfloat16 if plx.compute == "bfloat16" else torch.float32

    def rows(self, case: Case):
        """A row for each candidate; with "wrong" instead of times if it failed."""
        peer = self.attempt(lambda: self.run_peer(case), case, "torch")
        per_token = None  # MFU of the softmax model over tokens/s
        found = []
        for mixer in MIXERS:
            row = self.attempt(lambda m=mixer: self.run_plx(case, m), case, f"plx_{mixer}")
            if mixer == "softmax" and row.get("mfu"):
                per_token = row["mfu"] / row["tokens_per_second"]
            if "wrong" not in row and "wrong" not in peer:
                row["over_torch"] = row["tokens_per_second"] / peer["tokens_per_second"]
            found.append(row)
        if per_token is not None and "wrong" not in peer:
            peer["mfu"] = per_token * peer["tokens_per_second"]
        return [peer, *found]

    def attempt(self, run, case: Case, candidate: str) -> dict:
        row = {"call": "train", "case": case.name, "candidate": candidate}
        row |= {"context": case.context, "step_tokens": case.step_tokens,
                "micro_tokens": case.micro_tokens, "compute": self.plx.compute}  # fmt: skip
        try:
            return row | run()
        except RunError as error:
            return row | {"wrong": [str(error)]}
        except Exception as error:  # out of memory, a compiler that fails: the others still count
            return row | {"wrong": [one_line(error)]}
        finally:
            self.free_memory()

    def free_memory(self) -> None:
        """Gives the peer's memory back, compiled code included: plx is another process."""
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def run_plx(self, case: Case, mixer: str) -> dict:
        start, steps = run_timed(self.plx, case, mixer, self.options.steps)
        seconds = [case.step_tokens / step["tokens_per_second"] for step in steps]
        row = {"parameters": start["parameters"]} | rates(seconds, case, self.options.warm_up)
        share = steps[-1].get("model_flops_utilization")
        if share is not None:  # of the last step; the median's is as many times larger as it is
            row["mfu"] = share * row["tokens_per_second"] / steps[-1]["tokens_per_second"]
        return row | {"peak_memory_bytes": steps[-1]["peak_memory_bytes"]}

    def run_peer(self, case: Case) -> dict:
        check = run_check(self.plx, case)
        model = load_decoder(check.config, check.tensors, self.device)
        window = torch.tensor([check.tokens], device=self.device)
        with fastest_attention(self.device):
            found = loss_and_gradient_norm(model, window[:, :-1], window[:, 1:], self.dtype)
        row = {"parameters": sum(x.numel() for x in model.parameters())}
        row["check"] = compare(check, *found, self.dtype)
        if wrong := row["check"].pop("wrong", None):
            return row | {"wrong": wrong}
        return row | self.time_peer(case, model, check.recipe)

    def time_peer(self, case: Case, model: Decoder, recipe: dict) -> dict:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        recipe["train"]["micro_batch_size"] = case.micro_tokens // case.context
        recipe["optimizer"]["lr"] = 1e-4  # the check's is 0; it does not matter to the time
        with torch.no_grad():  # the usual size, as the twins have it
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(1 / 3)
        step = make_step(model, recipe, self.dtype, compiles=not self.options.no_compile)
        generator = torch.Generator().manual_seed(1)
        shape = (case.batch_size, case.context + 1)
        batches = []
        for _ in range(self.options.steps):
            batch = torch.randint(0, 256, shape, generator=generator)
            batches.append(batch.pin_memory() if self.device.type == "cuda" else batch)
        row = {"compiled": not self.options.no_compile}
        row |= rates(time_steps(step, batches, self.device), case, self.options.warm_up)
        if self.device.type == "cuda":
            row["peak_memory_bytes"] = torch.cuda.max_memory_reserved(self.device)
        return row


def print_row(row: dict) -> None:
    head = f"{row['case']:<12}{row['candidate']:<14}"
    if "wrong" in row:
        print(f"{head}FAILED: " + "; ".join(row["wrong"]), flush=True)
        return
    low, high = row["step_quartiles_ms"]
    share = f"{100 * row['mfu']:5.1f}%" if "mfu" in row else "     -"
    ratio = f"{row['over_torch']:8.2f}" if "over_torch" in row else "       -"
    num_bytes = row.get("peak_memory_bytes")
    memory = f"{num_bytes / 2**30:6.1f}" if num_bytes is not None else "     -"
    print(
        f"{head}{row['parameters']:>12,} {row['tokens_per_second']:>10,.0f} {share} {ratio}"
        f" {memory}  {row['step_ms']:.1f} ({low:.1f} to {high:.1f})",
        flush=True,
    )
    if "check" in row:
        texts = [f"{name} {ours:.6g} and {theirs:.6g}" for name, (ours, theirs) in
                 row["check"].items()]  # fmt: skip
        print("    plx and PyTorch on one window: " + ", ".join(texts), flush=True)


def main() -> int:
    options = parse_arguments()
    cases = selected_cases(options)
    if options.list:
        for case in cases:
            recipes = " ".join(case.recipe_of(mixer).stem for mixer in MIXERS)
            print(f"{case.name:<12}context {case.context}, {case.step_tokens} tokens in passes of "
                  f"{case.micro_tokens}, {recipes}")  # fmt: skip
        return 0
    device = open_device("train_gpu", options.device)
    if device is None:
        return 1
    try:
        program = find_plx(options.plx)
    except RunError as error:
        print(f"train_gpu: {error}", file=sys.stderr)
        return 1
    about = describe_run(options, device)
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    print(f"{'case':<12}{'candidate':<14}{'parameters':>12} {'tokens/s':>10} {'MFU':>6}"
          f" {'x torch':>8} {'GiB':>6}  ms per step")  # fmt: skip
    all_right = True
    compute = "bfloat16" if device.type == "cuda" else "float32"
    with tempfile.TemporaryDirectory(prefix="train_gpu_") as folder:
        data = options.data.resolve() if options.data else None
        plx = Plx(program, options.device, compute, Path(folder), data)
        for case in cases:
            for row in Benchmark(options, device, plx).rows(case):
                all_right = all_right and "wrong" not in row
                print_row(row)
                append(options.output, row | about)
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main())
