# SPDX-License-Identifier: Apache-2.0
"""bench/train_gpu.py with a tiny model on the CPU: its peer, what it refuses and what it writes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support import REPO_ROOT, build_path

sys.path.insert(0, str(REPO_ROOT / "bench"))

import train_gpu
import train_peer
import train_runs

CPU = torch.device("cpu")
CASE = train_runs.SMALL_CASES[0]


@pytest.fixture(autouse=True)
def short_spins(monkeypatch):
    """Threads that wait for one another leave the cores to what else runs here."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


def run(*arguments):
    command = [sys.executable, REPO_ROOT / "bench/train_gpu.py", *arguments]
    environment = {**os.environ, "PLX_BUILD_DIR": str(build_path("apps/plx/plx").parents[2])}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment
    )


def plx_at(folder, compute="float32"):
    return train_runs.Plx(build_path("apps/plx/plx"), "cpu", compute, folder)


def small_benchmark(folder, *arguments):
    arguments = ["--device", "cpu", "--small", "--no-compile", "--steps=3", "--warm-up=1",
                 *arguments]  # fmt: skip
    options = train_gpu.parse_arguments(arguments)
    return train_gpu.Benchmark(options, CPU, plx_at(folder))


def test_all_candidates_are_timed_after_the_check(tmp_path):
    output = tmp_path / "rows.jsonl"
    result = run("--device", "cpu", "--small", "--no-compile", "--steps", 3, "--warm-up", 1,
                 "--output", output, "--commit", "1a2b3c4")  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["candidate"] for row in rows] == ["torch", "plx_softmax", "plx_parallax"]
    peer, softmax, parallax = rows
    for row in rows:
        assert row["case"] == "small_64" and row["commit"] == "1a2b3c4" and row["steps"] == 2
        assert row["tokens_per_second"] == pytest.approx(512e3 / row["step_ms"])
        low, high = row["step_quartiles_ms"]
        assert 0 < low <= row["step_ms"] <= high
        assert row["candidate"] in result.stdout
    assert peer["parameters"] == softmax["parameters"] < parallax["parameters"]
    for row in (softmax, parallax):
        expected = row["tokens_per_second"] / peer["tokens_per_second"]
        assert row["over_torch"] == pytest.approx(expected)
    ours, theirs = peer["check"]["loss"]
    assert theirs == pytest.approx(ours, rel=1e-5) and 5 < ours < 8  # ln 257 = 5.5


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_peer_has_the_loss_and_gradient_of_plx(tmp_path, compute):
    dtype = getattr(torch, compute)
    check = train_runs.run_check(plx_at(tmp_path, compute), CASE)
    model = train_peer.load_decoder(check.config, check.tensors, CPU)
    window = torch.tensor([check.tokens])
    found = train_peer.loss_and_gradient_norm(model, window[:, :-1], window[:, 1:], dtype)
    assert "wrong" not in train_gpu.compare(check, *found, dtype)
    off = 1 + 2 * train_gpu.ALLOWED[dtype][0]
    assert "loss: plx has" in train_gpu.compare(check, off * found[0], found[1], dtype)["wrong"][0]
    wrong = train_gpu.compare(check, found[0], float("nan"), dtype)["wrong"]
    assert len(wrong) == 1 and "gradient_norm" in wrong[0]


def no_rotation(x, cos, sin):
    return x


def neighbours_rotated(x, cos, sin):
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


@pytest.mark.parametrize("rotate", [no_rotation, neighbours_rotated])
def test_another_model_is_not_timed(tmp_path, monkeypatch, rotate):
    monkeypatch.setattr(train_peer, "rotate", rotate)
    monkeypatch.setattr(train_gpu, "make_step", None)
    row = small_benchmark(tmp_path).run_peer(CASE)
    assert row["wrong"] and "tokens_per_second" not in row


def test_the_peers_steps_are_those_of_the_trainer(tmp_path):
    plx = plx_at(tmp_path)
    start = train_runs.run_check(plx, CASE)
    first, third = (train_runs.run_check(plx, CASE, num_steps, lr=0.01) for num_steps in (1, 3))
    tensors = {name: tensor.clone() for name, tensor in start.tensors.items()}
    model = train_peer.load_decoder(start.config, tensors, CPU)
    step = train_peer.make_step(model, third.recipe, torch.float32, compiles=False)
    window = torch.tensor([start.tokens])
    losses = [step(window)]
    for name, parameter in model.named_parameters():
        moved = (first.tensors[name] - start.tensors[name]).norm()
        # What a gradient hardly has, Muon makes large: there its last places, and bfloat16, show.
        is_muon = parameter.ndim == 2 and "embed" not in name
        difference = (parameter.detach() - first.tensors[name]).norm()
        assert difference <= (0.05 if is_muon else 1e-4) * moved, name
    losses += [step(window) for _ in range(2)]
    assert losses[0] == pytest.approx(start.loss, rel=1e-5)
    assert losses[2] == pytest.approx(third.loss, rel=1e-3) and losses[2] < losses[0] - 1


def test_the_peers_share_of_the_peak_is_that_of_the_same_model(tmp_path, monkeypatch):
    def run_timed(plx, case, mixer, num_steps):
        rate = {"softmax": 1000.0, "parallax": 800.0}[mixer]
        record = {"tokens_per_second": rate, "peak_memory_bytes": 1}
        return {"parameters": 7}, num_steps * [record | {"model_flops_utilization": rate / 4000}]

    peer = {"tokens_per_second": 500.0}
    monkeypatch.setattr(train_gpu, "run_timed", run_timed)
    benchmark = small_benchmark(tmp_path)
    monkeypatch.setattr(benchmark, "run_peer", lambda case: dict(peer))
    rows = benchmark.rows(CASE)
    assert [row["mfu"] for row in rows] == pytest.approx([0.125, 0.25, 0.2])
    assert [row.get("over_torch") for row in rows] == [None, 2.0, 1.6]


def test_a_candidate_that_fails_is_told_and_the_others_are_timed(tmp_path, monkeypatch):
    def run_peer(case):
        raise MemoryError("no more")

    benchmark = small_benchmark(tmp_path)
    monkeypatch.setattr(benchmark, "run_peer", run_peer)
    benchmark.plx.data = tmp_path / "none"
    rows = benchmark.rows(CASE)
    assert rows[0]["wrong"] == ["MemoryError: no more"]
    assert "there is no token folder" in rows[1]["wrong"][0]
    benchmark.plx.data = None
    assert "tokens_per_second" in benchmark.rows(CASE)[1]


def test_what_cannot_run_is_said(tmp_path):
    assert "no case matches 'nothing'" in run("--cases", "nothing", "--list").stderr
    listed = run("--list").stdout
    assert "0p6b_4096" in listed and "qwen3_0p6b_parallax_muon" in listed
    assert "divide a step" in run("--micro-tokens", 3000, "--list").stderr
    assert run("--steps", 3, "--warm-up", 2).returncode == 2
    result = run("--device", "cpu", "--small", "--plx", tmp_path / "plx")
    assert result.returncode == 1 and "build the target plx" in result.stderr
    if not torch.cuda.is_available():
        assert "no CUDA device" in run().stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_compiled_peer_passes_the_check(tmp_path):
    output = tmp_path / "rows.jsonl"
    result = run("--small", "--steps", 6, "--warm-up", 3, "--output", output)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["compute"] for row in rows] == 3 * ["bfloat16"]
    assert all(row["peak_memory_bytes"] > 0 for row in rows)


@pytest.mark.slow
def test_a_compiled_step_is_that_of_the_plain_one(tmp_path):
    check = train_runs.run_check(plx_at(tmp_path), CASE)
    check.recipe["optimizer"]["lr"] = 0.01
    losses = []
    for compiles in (False, True):
        tensors = {name: tensor.clone() for name, tensor in check.tensors.items()}
        model = train_peer.load_decoder(check.config, tensors, CPU)
        step = train_peer.make_step(model, check.recipe, torch.float32, compiles)
        losses.append([step(torch.tensor([check.tokens])) for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # of the second step, after Muon's
    assert losses[0][1] < losses[0][0]
