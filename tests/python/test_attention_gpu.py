# SPDX-License-Identifier: Apache-2.0
"""bench/attention_gpu.py in tiny sizes on the CPU: what it counts, checks, refuses and writes."""

import json
import subprocess
import sys

import pytest
import torch
from naive import visible_keys
from support import REPO_ROOT

sys.path.insert(0, str(REPO_ROOT / "bench"))

import attention_gpu
import gpu_backward
import gpu_calls
from gpu_cases import Case, Target, make_inputs, packed_lengths, select_cases
from gpu_reference import compare, refusals, sample

CPU = torch.device("cpu")


def run(*arguments):
    command = [sys.executable, str(REPO_ROOT / "bench/attention_gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows_of(path, *arguments):
    result = run("--device", "cpu", "--small", "--output", path, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return [json.loads(line) for line in path.read_text().splitlines()], result.stdout


@pytest.mark.parametrize(
    ("options", "length"),
    [({}, 300), ({"window": 70}, 300), ({"window": 400}, 300), ({"causal": False}, 50)],
)
def test_visible_pairs_are_those_of_the_mask(options, length):
    case = Case("", 1, 2 * length, 3, 3, 64, lengths=(length, length), **options)
    assert case.visible_pairs == 3 * 2 * visible_keys(length, length, **options).sum()


def test_a_dense_causal_mask_counts_as_half_the_square():
    assert Case("", 2, 10, 3, 3, 64).flops == 8 * 64 * 2 * 3 * 50


def test_packed_lengths_are_in_their_range_and_sum_up():
    lengths = packed_lengths(16384, 512, 4096)
    assert sum(lengths) == pytest.approx(16384, abs=512)
    assert all(512 <= length <= 4096 for length in lengths)


def test_names_are_unique_and_targets_refer_to_earlier_cases():
    for backward in (False, True):
        cases = select_cases(backward=backward)
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
        for index, case in enumerate(cases):
            assert case.relative_to is None or case.relative_to[0] in names[:index]


def test_times_are_written_with_errors_and_peers(tmp_path):
    selection = "d128_causal_4x4096|gqa|full|varlen|window|float16"
    options = ("--peers", "sdpa,cudnn", "--commit", "1a2b3c4")
    rows, printed = rows_of(tmp_path / "rows.jsonl", "--cases", selection, *options)
    assert len(rows) == 6
    for row in rows:
        assert row["case"] in printed
        assert row["ms"] > 0 and row["tflops"] > 0 and row["share_of_gemm"] > 0
        assert row["inference_time_over_training"] == row["inference_ms"] / row["ms"] > 0
        low, high = row["inference_quartiles_ms"]
        assert low <= row["inference_ms"] <= high
        assert row["backend"] == "cpu" and row["commit"] == "1a2b3c4"
        assert set(row["errors"]) == {"out", "out_softmax", "lse", "t_mean"}
        assert len(row["errors"]["out"]["at"]) == 4
        assert row["absent"]["cudnn"] == "it needs a CUDA device"
        assert ("sdpa" in row.get("time_over", {})) == (row["mask"] in ("causal", "full"))
    assert printed.count("    inference: ") == len(rows)


def test_errors_are_written_for_each_regime(tmp_path):
    rows, printed = rows_of(
        tmp_path / "rows.jsonl", "--accuracy", "--quick", "--cases", "normal|mean.t|1 visible|last"
    )
    assert [row["regime"] for row in rows].count("normal") == 2
    assert len(rows) == 7
    for row in rows:
        assert row["rms"] <= (0 if row["regime"] == "1 visible key" else 5e-3)
        assert row["regime"] in printed


@pytest.mark.parametrize("case", select_cases("d64_causal_4x4096|gqa|varlen|window", small=True))
def test_wrong_results_are_refused(case):
    inputs = make_inputs(case, CPU)
    samples = sample(case, inputs)
    results = gpu_calls.ours(case, inputs).results()
    assert refusals(case, compare(samples, results)) == []
    last = samples[-1]
    for name, value in (("out", 1.0), ("out_softmax", torch.nan), ("lse", 1e-3), ("t_mean", 0.1)):
        wrong = {**results, name: results[name].clone()}
        view = last.take(name, wrong[name])
        view[-1] = view[-1] + value
        tokens = last.rows + last.first_token
        place = (tokens[-1], last.head) if name.startswith("out") else (last.head, tokens[-1])
        place = place if case.lengths else (last.sequence, *place)
        wrong[name][place] = view[-1]
        assert [name in text for text in refusals(case, compare(samples, wrong))].count(True) >= 1


@pytest.mark.parametrize("case", select_cases("d64_causal_4x4096|varlen", small=True))
def test_inference_is_timed_without_statistics_and_refused_with_other_bits(case, monkeypatch):
    options = attention_gpu.parse_arguments(["--small", "--device", "cpu", "--peers", "none"])
    benchmark = attention_gpu.Benchmark(options, CPU)
    calls = []

    def forward(*arguments, return_stats):
        calls.append(return_stats)
        return op(*arguments, return_stats=return_stats)

    op = torch.ops.parallax.attention_forward
    monkeypatch.setattr(torch.ops.parallax, "attention_forward", forward)
    assert "wrong" not in benchmark.run_case(case)
    assert calls.count(False) > benchmark.timing.min_runs

    def one_bit_off(*arguments, return_stats):
        out, *stats = op(*arguments, return_stats=return_stats)
        if not return_stats:
            out.flatten()[-1:].view(torch.int16).bitwise_xor_(1)
        return out, *stats

    monkeypatch.setattr(torch.ops.parallax, "attention_forward", one_bit_off)
    row = benchmark.run_case(case)
    assert row["wrong"] == ["inference: out has other bits than with the saved tensors"]
    assert "ms" not in row and "inference_ms" not in row


def test_targets_are_judged():
    targets = (Target("tflops", 450, 490), Target("time_over_cudnn", 2.0, at_least=False),
               Target("speedup_over_fla", 2.3))  # fmt: skip
    case = Case("x", 1, 1, 1, 1, 64, targets=targets, relative_to=("y", 0.95))
    benchmark = attention_gpu.Benchmark(
        attention_gpu.parse_arguments(["--small", "--device", "cpu"]), CPU
    )
    benchmark.tflops_of_case["y"] = 500.0
    row = {"tflops": 470.0, "time_over": {"cudnn": 2.5}}
    benchmark.judge(case, row)
    rate, ratio, speedup, share = row["targets"]
    assert rate["met"] and not rate["goal_met"]
    assert not ratio["met"]
    assert "value" not in speedup and "not measured" in attention_gpu.target_text(speedup)
    assert not share["met"] and share["value"] == 0.94


def test_gradients_are_checked_and_timed(tmp_path):
    path = tmp_path / "rows.jsonl"
    cases = "d128_gqa_4x4096|varlen|window"
    rows, text = rows_of(path, "--backward", "--cases", cases, "--peers", "cudnn")
    assert [row["call"] for row in rows] == ["backward"] * 3
    for row in rows:
        assert set(row["errors"]) == {"dq", "dr", "dk", "dv"}
        assert max(row["errors"].values()) < 6e-3
        assert row["ms"] > 0 and row["forward_ms"] > 0
        assert row["absent"]["cudnn"]
    assert "cudnn is absent" in text


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_wrong_gradients_are_not_timed(which, monkeypatch):
    case = select_cases("d64_causal_4x4096", backward=True, small=True)[0]
    right = gpu_backward.ours

    def off(case, inputs, d_out):
        candidate = right(case, inputs, d_out)
        backward = candidate.backward

        def run():
            gradients = list(backward()())
            gradients[which] = 1.02 * gradients[which]
            return gradients

        candidate.backward = lambda: run
        return candidate

    monkeypatch.setattr(gpu_backward, "ours", off)
    timing = attention_gpu.TimingOptions(warm_up_ms=1, min_runs=3, total_ms=1)
    row = gpu_backward.measure(case, CPU, timing, [])
    assert "ms" not in row
    assert [text.split(":")[0] for text in row["wrong"]] == [gpu_backward.NAMES[which]]


def test_gradients_count_eight_products():
    case = select_cases("d64_causal_4x4096", backward=True)[0]
    assert case.flops == 2 * select_cases("d64_causal_4x4096")[0].flops


def test_what_cannot_run_is_said():
    assert run("--peers", "nobody").returncode == 2
    assert "no case matches 'nothing'" in run("--cases", "nothing", "--list").stderr
    if not torch.cuda.is_available():
        assert "no CUDA device" in run().stderr


def test_the_backend_is_read_from_the_log(monkeypatch):
    case = select_cases("d64_causal_4x4096", small=True)[0]
    inputs = make_inputs(case, CPU)
    monkeypatch.setenv("PLX_BACKEND", "reference")
    assert gpu_calls.backend_of(gpu_calls.ours(case, inputs).run) == "reference"
