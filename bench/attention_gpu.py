#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Attention on a GPU: first the result against float64, then the time, beside its peers.

Peers, in the same process: softmax attention of cuDNN and FlashAttention through PyTorch, and FLA's
Triton kernel for Parallax, if the package fla-core is on the path. A product of two 8192 x 8192
matrices is timed beside each case: clocks and power decide what a card gives that day.
"""

import argparse
import re
import sys
from pathlib import Path

import gpu_accuracy
import gpu_backward
import torch
from gpu_calls import (
    PEERS,
    AbsentError,
    backend_of,
    make_peer,
    ours,
    ours_for_inference,
    poisoned_memory,
)
from gpu_cases import Case, make_inputs, select_cases
from gpu_reference import Rows, compare, not_finite, refusals, sample
from gpu_run import append, describe_run, one_line, open_device
from gpu_timing import TimingOptions, gemm_tflops, time_call, time_graph

EPILOG = """\
TFLOP/s: 8 D per visible (query, key) pair, a dense causal mask counted as T^2 / 2. gemm: share of
the matrix product's rate. x cudnn, x flash: our time over theirs, which have half the work at equal
D (2 is parity). fla x: their time over ours. targets: what is asked for, then the value.
inference: the same call without the tensors that are saved for training, whose `out` must have the
same bits; x training is its time over ours above. All other numbers are of the training form.
--backward: TFLOP/s of the backward alone, 16 D per visible pair; x cudnn and fla x are of forward
and backward together, the forward's time beside them.

examples:
  python3 bench/attention_gpu.py
  python3 bench/attention_gpu.py --quick --output results.jsonl --commit 1a2b3c4
  python3 bench/attention_gpu.py --cases 'd128_causal|varlen' --peers cudnn
  PLX_BACKEND=cuda_portable python3 bench/attention_gpu.py --cases d128_causal_4x4096
  PYTHONPATH=folder_of_fla python3 bench/attention_gpu.py --accuracy
  PYTHONPATH=folder_of_fla python3 bench/attention_gpu.py --backward --peers cudnn,fla
  python3 bench/attention_gpu.py --device cpu --small      # the program itself, without a GPU
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--accuracy", action="store_true", help="compare errors with FLA's instead of times")
    add("--backward", action="store_true", help="gradients, and forward and backward together")
    add("--cases", default="", metavar="REGEX", help="cases whose names match (--list shows them)")
    add("--list", action="store_true", help="print the cases and end")
    add("--quick", action="store_true", help="a few cases")
    add("--small", action="store_true", help="tiny sizes, to try the program")
    add("--device", default="cuda", help="cuda, cuda:1 or cpu")
    add("--peers", default=",".join(PEERS), help="any of cudnn, flash, fla and sdpa, or none")
    add("--no-graph", action="store_true", help="leave out the replays of CUDA graphs")
    add("--output", type=Path, help="append one JSON object per case to this file")
    add("--commit", default="unknown", help="for the JSON: what was built")
    options = parser.parse_args(arguments)
    options.peers = [name for name in options.peers.split(",") if name not in ("", "none")]
    unknown = set(options.peers) - {*PEERS, "sdpa"}
    if unknown:
        parser.error(f"--peers: there is no {', '.join(sorted(unknown))}")
    try:
        re.compile(options.cases)
    except re.error as error:
        parser.error(f"--cases: {error}")
    return options


def version_of(module: str) -> str | None:
    found = sys.modules.get(module)
    return getattr(found, "__version__", None)


class Benchmark:
    def __init__(self, options: argparse.Namespace, device: torch.device):
        self.options, self.device = options, device
        self.timing = TimingOptions()
        if options.small:
            self.timing = TimingOptions(warm_up_ms=1, min_runs=3, total_ms=1)
        self.measure_gemm = gemm_tflops(device, 256 if options.small else 8192, self.timing)
        self.tflops_of_case: dict[str, float] = {}

    def run_case(self, case: Case) -> dict[str, object]:
        """A row of the result file; with "wrong" instead of times if the result is."""
        row: dict[str, object] = {
            "call": case.call,
            "case": case.name,
            "dtype": case.dtype_name,
            "shape": case.shape,
            "mask": case.mask,
        }
        if case.lengths:
            row["lengths"] = case.lengths
        inputs = make_inputs(case, self.device)
        samples = sample(case, inputs)
        candidate, inference = ours(case, inputs), ours_for_inference(case, inputs)
        row["backend"] = backend_of(candidate.run)
        with poisoned_memory():
            results = candidate.results()
            out_of_inference = inference.results()["out"]
        errors = compare(samples, results)
        row["num_rows"] = sum(len(rows.rows) for rows in samples)
        row["errors"] = {name: vars(error) for name, error in errors.items()}
        wrong = refusals(case, errors) + not_finite(results)
        out_bytes = (x.view(torch.uint8) for x in (out_of_inference, results["out"]))
        if not torch.equal(*out_bytes):
            wrong.append("inference: out has other bits than with the saved tensors")
        if wrong:
            return {**row, "wrong": wrong}
        del results, out_of_inference
        row["gemm_tflops"] = self.measure_gemm()
        self.time_ours(case, candidate.run, row)
        self.time_inference(inference.run, row)
        for name in self.options.peers:
            self.time_peer(name, case, inputs, samples, row)
        self.judge(case, row)
        return row

    def time_ours(self, case: Case, run, row: dict[str, object]) -> None:
        timing = time_call(run, self.device, self.timing)
        row |= {"ms": timing.ms, "quartiles_ms": timing.quartiles_ms, "rounds": timing.runs}
        row["tflops"] = 1e-9 * case.flops / timing.ms
        row["share_of_gemm"] = row["tflops"] / row["gemm_tflops"]
        self.tflops_of_case[case.name] = row["tflops"]
        graph = self.time_graph(run)
        if isinstance(graph, str):
            row["graph_failed"] = graph
        elif graph is not None:
            row |= {"graph_ms": graph.ms, "graph_quartiles_ms": graph.quartiles_ms}

    def time_inference(self, run, row: dict[str, object]) -> None:
        timing = time_call(run, self.device, self.timing)
        row |= {"inference_ms": timing.ms, "inference_quartiles_ms": timing.quartiles_ms}
        row["inference_time_over_training"] = timing.ms / row["ms"]
        graph = self.time_graph(run)
        if isinstance(graph, str):
            row["inference_graph_failed"] = graph
        elif graph is not None:
            row["inference_graph_ms"] = graph.ms
            row["inference_graph_quartiles_ms"] = graph.quartiles_ms

    def time_graph(self, run):
        """A Timing, the reason why there is none, or None where none was asked for."""
        if self.options.no_graph or self.device.type != "cuda":
            return None
        try:
            return time_graph(run, self.device, self.timing)
        except Exception as error:  # a peer may refuse to be captured in any way
            return one_line(error)

    def time_peer(self, name: str, case: Case, inputs, samples: list[Rows], row: dict) -> None:
        try:
            candidate, results = make_peer(name, case, inputs)
            errors = compare(samples, results)
            wrong = refusals(case, errors, factor=5)  # theirs to improve; ours to not time nonsense
            if wrong:
                raise AbsentError(f"its result is wrong: {wrong[0]}")
        except AbsentError as reason:
            row.setdefault("absent", {})[name] = str(reason)
            return
        for tensor, error in errors.items():
            row.setdefault("peers_errors", {})[f"{name}.{tensor}"] = vars(error)
        timing = time_call(candidate.run, self.device, self.timing)
        row.setdefault("peers_ms", {})[name] = timing.ms
        row.setdefault("peers_quartiles_ms", {})[name] = timing.quartiles_ms
        row.setdefault("time_over", {})[name] = row["ms"] / timing.ms
        graph = self.time_graph(candidate.run)
        if graph is not None and not isinstance(graph, str):
            row.setdefault("peers_graph_ms", {})[name] = graph.ms

    def run_gradients(self, case: Case) -> dict[str, object]:
        """The same of the backward."""
        row = gpu_backward.measure(case, self.device, self.timing, self.options.peers)
        if "wrong" not in row:
            row["gemm_tflops"] = self.measure_gemm()
            self.tflops_of_case[case.name] = row["tflops"]
            self.judge(case, row)
        return row

    def judge(self, case: Case, row: dict[str, object]) -> None:
        """Each target with its value; a target without a value is not listed as missed."""
        values = (gpu_backward.quantities if case.call == "backward" else quantities)(row)
        judged = []
        for target in case.targets:
            entry = {"quantity": target.quantity, "limit": target.limit}
            value = values[target.quantity]
            if value is not None:
                entry |= {"value": value, "met": target.is_met(value, target.limit)}
            if target.goal is not None:
                entry["goal"] = target.goal
                entry["goal_met"] = target.is_met(value, target.goal)
            judged.append(entry)
        if case.relative_to is not None:
            other, share = case.relative_to
            entry = {"quantity": f"share_of_{other}", "limit": share}
            if other in self.tflops_of_case:
                value = row["tflops"] / self.tflops_of_case[other]
                entry |= {"value": value, "met": value >= share}
            judged.append(entry)
        if judged:
            row["targets"] = judged


def quantities(row: dict[str, object]) -> dict[str, float | None]:
    """What the targets of the forward are about."""
    time_over = row.get("time_over", {})
    return {
        "tflops": row["tflops"],
        "time_over_cudnn": time_over.get("cudnn"),
        "speedup_over_fla": 1 / time_over["fla"] if "fla" in time_over else None,
    }


def print_header() -> None:
    print(f"{'case':<24}{'(B,Hq,Hkv,T,D)':<21}{'ms':>8} {'graph':>8} {'TFLOP/s':>7} {'gemm':>5}"
          f" {'x cudnn':>7} {'x flash':>7} {'fla x':>6}  {'backend':<14}targets")  # fmt: skip


def text_of(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def print_row(row: dict[str, object]) -> None:
    time_over = row.get("time_over", {})
    fla = time_over.get("fla")
    print(
        f"{row['case']:<24}{row['shape']:<21}{row['ms']:8.3f} {text_of(row.get('graph_ms'), 8, 3)}"
        f" {row['tflops']:7.1f} {100 * row['share_of_gemm']:4.0f}%"
        f" {text_of(time_over.get('cudnn'), 7, 2)} {text_of(time_over.get('flash'), 7, 2)}"
        f" {text_of(fla and 1 / fla, 6, 2)}  {row['backend']:<14}"
        + "; ".join(target_text(target) for target in row.get("targets", [])),
        flush=True,
    )
    errors = [f"{name} {error['rms']:.1e} (max {error['max']:.1e} at {error['at']})"
              for name, error in row["errors"].items()]  # fmt: skip
    print("    rms errors: " + ", ".join(errors))
    low, high = row["quartiles_ms"]
    print(f"    quartiles {low:.3f} to {high:.3f} ms of {row['rounds']} runs, "
          f"gemm {row['gemm_tflops']:.0f} TFLOP/s")  # fmt: skip
    low, high = row["inference_quartiles_ms"]
    print(f"    inference: {row['inference_ms']:.3f} ms ({low:.3f} to {high:.3f}), graph "
          f"{text_of(row.get('inference_graph_ms'), 0, 3)}, x training "
          f"{row['inference_time_over_training']:.3f}")  # fmt: skip
    for name, ms in row.get("peers_ms", {}).items():
        low, high = row["peers_quartiles_ms"][name]
        graph = row.get("peers_graph_ms", {}).get(name)
        print(f"    {name}: {ms:.3f} ms ({low:.3f} to {high:.3f}), graph {text_of(graph, 0, 3)}")
    for name, reason in row.get("absent", {}).items():
        print(f"    {name} is absent: {reason}")
    for name, what in (("graph_failed", "the"), ("inference_graph_failed", "the inference's")):
        if name in row:
            print(f"    {what} CUDA graph FAILED: {row[name]}")
    sys.stdout.flush()


def target_text(target: dict[str, object]) -> str:
    goal = f" (goal {target['goal']:g})" if "goal" in target else ""
    name = f"{target['quantity']} {target['limit']:g}{goal}"
    if "value" not in target:
        return f"{name}: not measured"
    state = "goal met" if target.get("goal_met") else "met" if target["met"] else "MISSED"
    return f"{name}: {target['value']:.4g} {state}"


def selected_cases(options: argparse.Namespace) -> list[Case]:
    cases = select_cases(
        options.cases, backward=options.backward, quick=options.quick, small=options.small
    )
    if not cases:
        sys.exit(f"attention_gpu: no case matches '{options.cases}' (--list shows them)")
    return cases


def run_times(options: argparse.Namespace, device: torch.device, about: dict) -> bool:
    benchmark = Benchmark(options, device)
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    (gpu_backward.print_header if options.backward else print_header)()
    run_case = benchmark.run_gradients if options.backward else benchmark.run_case
    all_right = True
    for case in selected_cases(options):
        try:
            row = run_case(case)
        except Exception as error:  # the other cases still count; a dead device fails them all
            row = {"call": case.call, "case": case.name, "wrong": [one_line(error)]}
        row |= about
        row |= {name: version for name in ("triton", "fla") if (version := version_of(name))}
        if "wrong" in row:
            all_right = False
            print(
                f"{case.name:<24}WRONG, not timed:\n    " + "\n    ".join(row["wrong"]), flush=True
            )
        elif options.backward:
            targets = "; ".join(target_text(target) for target in row.get("targets", []))
            gpu_backward.print_row(row, targets)
            sys.stdout.flush()
        else:
            print_row(row)
        append(options.output, row)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return all_right


def run_accuracy(options: argparse.Namespace, device: torch.device, about: dict) -> bool:
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    gpu_accuracy.print_header()
    all_met, absent = True, ""
    for case, regime in gpu_accuracy.accuracy_cases(options.small, options.quick):
        if not re.search(options.cases, regime.name):
            continue
        row = gpu_accuracy.measure(case, regime, device)
        gpu_accuracy.print_row(row)
        append(options.output, row | about)
        all_met = all_met and row.get("met", True)
        absent = row.get("absent", {}).get("fla", absent)
    if absent:
        print(f"fla is absent: {absent}")
    return all_met


def main() -> int:
    options = parse_arguments()
    if options.list:
        for case in selected_cases(options):
            print(f"{case.name:<26}{case.shape:<22}{case.dtype_name:<10}{case.mask}")
        return 0
    device = open_device("attention_gpu", options.device)
    if device is None:
        return 1
    about = describe_run(options, device)
    run = run_accuracy if options.accuracy else run_times
    with torch.no_grad():
        return 0 if run(options, device, about) else 1


if __name__ == "__main__":
    sys.exit(main())
