# SPDX-License-Identifier: Apache-2.0
"""bench/row_ops_gpu.py in tiny sizes on the CPU: what it counts, checks, refuses and writes."""

import json
import subprocess
import sys

import pytest
import torch
from support import REPO_ROOT

sys.path.insert(0, str(REPO_ROOT / "bench"))

import row_ops_gpu

CPU = torch.device("cpu")
SMALL = ["--device", "cpu", "--small", "--peers", "eager"]


def run(*arguments):
    command = [sys.executable, str(REPO_ROOT / "bench/row_ops_gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_case_is_checked_timed_and_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    result = run(*SMALL, "--output", path, "--commit", "1a2b3c4")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["case"] for row in rows] == [case.name for case in row_ops_gpu.CASES]
    for row in rows:
        assert row["case"] in result.stdout and row["commit"] == "1a2b3c4"
        assert set(row["times"]) == {"ours", "eager"} and "absent" not in row
        for parts in row["times"].values():
            for part, times in parts.items():
                rate = 1e-6 * row["bytes"][part] / times["ms"]
                assert times["gb_per_s"] == pytest.approx(rate) and rate > 0
                assert times["share_of_copy"] == pytest.approx(rate / row["copy_gb_per_s"])


def test_bytes_are_those_that_must_move():
    options = row_ops_gpu.parse_arguments(SMALL)
    benchmark = row_ops_gpu.Benchmark(options, CPU)
    cases = {case.name: case for case in row_ops_gpu.select_cases(options)}
    swiglu = benchmark.run_case(cases["swiglu_3072"])["bytes"]
    size = 2 * 32 * 3072
    assert swiglu == {"forward": 3 * size, "both": 8 * size}
    rope = benchmark.run_case(cases["rope_16_heads"])["bytes"]
    size, tables = 2 * 2 * 16 * 16 * 128, 2 * 4 * 16 * 64
    assert rope == {"forward": 2 * size + tables, "both": 5 * size + 2 * tables}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_wrong_results_are_not_timed(which, monkeypatch):
    options = row_ops_gpu.parse_arguments(SMALL)
    case = row_ops_gpu.select_cases(options)[0]
    right = row_ops_gpu.with_gradients

    def wrong(function, leaves, dy):
        results = right(function, leaves, dy)
        if results[0].dtype != torch.float64:
            results[which] = 1.05 * results[which]
        return results

    monkeypatch.setattr(row_ops_gpu, "with_gradients", wrong)
    row = row_ops_gpu.Benchmark(options, CPU).run_case(case)
    assert "times" not in row
    assert row["wrong"][0].startswith("the result" if which == 0 else f"gradient {which}")


def test_what_cannot_run_is_said():
    assert run("--peers", "nobody").returncode == 2
    assert "no case matches 'nothing'" in run("--cases", "nothing").stderr
    if not torch.cuda.is_available():
        result = run("--cases", "swiglu")
        assert result.returncode == 1 and "no CUDA device" in result.stderr
