# SPDX-License-Identifier: Apache-2.0
"""`plx train` by several processes: the same result as by one, and no end but a clear one.

Each test runs on the CPU (Gloo) and, where there are two GPUs and a build with NCCL, on those.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import build_path
from train_support import ENVIRONMENT, Run, check_whole

# What tells the processes of these tests from others; inherited by all that they start.
ENVIRONMENT["PLX_TESTED_BY"] = str(os.getpid())
MARK = f"PLX_TESTED_BY={os.getpid()}"
SOFTMAX = ["--set", "model.mixers=softmax"]  # on GPUs, too, without the CUDA backends
EVERY_STEP = ["--set", "checkpoint.every_steps=1"]


def why_not_on_two_gpus():
    if torch.cuda.device_count() < 2:
        return f"there are {torch.cuda.device_count()} GPUs, two are needed"
    info = subprocess.run(
        [build_path("apps/plx/plx"), "info", "--json"], capture_output=True, text=True, check=True
    )
    processes = json.loads(info.stdout)["torch"]["processes"]
    return None if "no nccl" not in processes else f"this build joins no GPUs: {processes}"


@pytest.fixture(params=["cpu", "cuda"])
def run(tmp_path, request):
    if request.param == "cuda" and (reason := why_not_on_two_gpus()):
        pytest.skip(reason)
    run = Run(tmp_path)
    text = run.recipe.read_text().replace('device = "cpu"', f'device = "{request.param}"')
    run.recipe.write_text(text)
    return run


def beside(run, name):
    """Another output folder of the same recipe."""
    other = Run.__new__(Run)
    other.recipe, other.output = run.recipe, run.output.parent / name
    return other


def processes_with(variable):
    """{pid: environment} of the processes that have this environment variable, "NAME=value"."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            if variable in environment:
                found[int(folder.name)] = dict(entry.partition("=")[::2] for entry in environment)
    return found


def ranks_of(launcher):
    """Pids of its processes, by rank."""
    ranks = {
        int(environment["RANK"]): pid
        for pid, environment in processes_with(MARK).items()
        if "RANK" in environment and pid != launcher.pid
    }
    return [ranks[rank] for rank in sorted(ranks)]


def are_gone(pids, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.05)
    return False


def losses(run):
    return [line["loss"] for line in run.lines("train")]


def assert_same_run(given, expected, tolerance):
    """Losses and weights of two runs that differ in rounding: in the order of sums over sequences.

    Such a difference, 1e-7 of a gradient, moves a weight by 1e-7 of a step, but AdamW divides small
    gradients by their own size and Muon small singular values by theirs, which makes the ratio of
    the sum of squares the measure, not the largest element.
    """
    assert losses(given) == pytest.approx(losses(expected), abs=tolerance)
    ours = load_file(given.output / "latest" / "model.safetensors")
    theirs = load_file(expected.output / "latest" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        error = (ours[name] - weight).norm() / weight.norm()
        assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_as_one_does(run, optimizer, processes):
    if processes > 2 and torch.cuda.is_available() and 'device = "cuda"' in run.recipe.read_text():
        pytest.skip("two GPUs are enough")
    settings = [*SOFTMAX, "--steps", "20", "--set", f"optimizer.name={optimizer}"]
    one = beside(run, "one")
    result = one.finish(*settings)
    assert result.returncode == 0, result.stderr
    result = run.finish(*settings, "--processes", str(processes))
    assert result.returncode == 0, result.stderr
    assert_same_run(run, one, 2e-3)
    assert run.lines("start")[0]["ranks"] == processes
    assert len(run.lines("train")) == 20, "the first rank alone writes"
    ours, theirs = run.lines("end")[0], one.lines("end")[0]
    assert ours["tokens"] == theirs["tokens"]
    assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=2e-3)


def test_micro_batches_of_processes_add_up(run):
    settings = [*SOFTMAX, "--steps", "5", "--set", "train.batch_size=8"]
    one = beside(run, "one")
    assert one.finish(*settings).returncode == 0
    result = run.finish(
        *settings, "--processes", "2", "--set", "train.micro_batch_size=1", "--set",
        "train.activation_checkpointing=true",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert_same_run(run, one, 1e-4)


def test_as_many_processes_go_on_bit_for_bit(run):
    settings = [*SOFTMAX, "--steps", "12", "--processes", "2", "--set", "train.deterministic=true"]
    whole = beside(run, "whole")
    assert whole.finish(*settings).returncode == 0
    assert run.finish(*settings, "--stop-at", "5").returncode == 0
    assert run.finish(*settings, "--resume").returncode == 0
    for name in ("model.safetensors", "training/optimizer.safetensors"):
        ours = (run.output / "latest" / name).read_bytes()
        assert ours == (whole.output / "latest" / name).read_bytes(), name
    assert losses(run) == losses(whole)


def test_torchrun_starts_it_too(run):
    one = beside(run, "one")
    settings = [*SOFTMAX, "--steps", "5"]
    assert one.finish(*settings).returncode == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python",
                "--nproc-per-node", "2"]  # fmt: skip
    result = subprocess.run(
        [*torchrun, *run.command(*settings)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert_same_run(run, one, 1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_and_another_number_goes_on(run, number):
    process = run.start(*SOFTMAX, "--processes", "2")
    run.wait_for_step(3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.count(f"stopped by {number.name} after step") == 1
    assert "lost" not in errors
    (checkpoint,) = run.checkpoints()
    check_whole(checkpoint)
    step = run.lines("end")[0]["step"]
    for processes in ("1", "2"):
        step += 2
        result = run.finish(*SOFTMAX, "--resume", "--stop-at", str(step), "--processes", processes)
        assert result.returncode == 0, result.stderr
    whole = beside(run, "whole")
    assert whole.finish(*SOFTMAX, "--stop-at", str(step)).returncode == 0
    # Hundreds of steps may lie before the signal; their roundings grow.
    assert losses(run)[:10] == pytest.approx(losses(whole)[:10], abs=1e-3)
    assert [line["step"] for line in run.lines("train")] == list(range(1, step + 1))


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_rank_ends_the_run(run, lost):
    process = run.start(*SOFTMAX, *EVERY_STEP, "--processes", "2")
    run.wait_for_step(3, process)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    os.kill(ranks[lost], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"plx: rank {lost} of 2 was ended by SIGKILL" in errors
    assert are_gone(ranks, seconds=1)
    newest = (run.output / "latest").resolve()
    check_whole(newest)
    if lost == 1:
        (told,) = [line for line in errors.splitlines() if "rank 0 of 2 lost another" in line]
        assert f"is saved in {run.output}/step_" in told or "cannot be saved" in told
    assert run.finish(*SOFTMAX, "--resume", "--steps", "1000000", "--stop-at",
                      str(int(newest.name[5:]) + 1)).returncode == 0  # fmt: skip


def test_a_rank_that_hangs_ends_the_run_after_the_timeout(run):
    process = run.start(
        *SOFTMAX, *EVERY_STEP, "--processes", "2", "--set", "train.timeout_seconds=2"
    )
    run.wait_for_step(3, process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGSTOP)
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 30
    assert process.returncode == 1
    assert "another rank did not get on for 2 s (train.timeout_seconds)" in errors
    assert are_gone(ranks, seconds=1)
    check_whole((run.output / "latest").resolve())


def test_ranks_do_not_outlive_their_launcher(run):
    process = run.start(*SOFTMAX, "--processes", "2")
    run.wait_for_step(3, process)
    ranks = ranks_of(process)
    process.kill()
    assert are_gone(ranks, seconds=30)
    _, errors = process.communicate()
    assert "stopped by SIGTERM after step" in errors
    check_whole((run.output / "latest").resolve())


def test_a_second_signal_ends_all_at_once(run):
    process = run.start(*SOFTMAX, "--processes", "2")
    run.wait_for_step(3, process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode != 0
    assert are_gone(ranks, seconds=1)


def test_numbers_that_blow_up_are_told_once(run):
    result = run.finish(*SOFTMAX, "--set", "optimizer.lr=1000", "--steps", "50", "--processes", "2")
    assert result.returncode == 1
    assert result.stderr.count(" is NaN, infinite or beyond 1e+15; ") == 1
    assert len(run.lines("not_finite")) == 1


def test_a_batch_that_cannot_be_shared_is_refused_once(run):
    result = run.finish("--processes", "2", "--set", "train.batch_size=5")
    assert result.returncode == 1
    message = (
        "plx: rank 0: train.batch_size is 5, the sequences of all 2 processes together; "
        "it must be a multiple of 2, so that each has as many\n"
    )
    assert result.stderr.count("train.batch_size") == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2"}, "RANK is ''"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2'"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_PORT": "1"},
         "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "1",
          "MASTER_ADDR": "127.0.0.1"}, "rank 1 of 2 could not join the others through 127.0.0.1:1"),
    ],
)  # fmt: skip
def test_wrong_variables_are_named(tmp_path, variables, message):
    run = Run(tmp_path)
    result = subprocess.run(
        run.command("--set", "train.timeout_seconds=2"),
        capture_output=True,
        text=True,
        env=ENVIRONMENT | variables,
        timeout=60,
    )
    assert result.returncode == 1
    assert message in result.stderr


def test_processes_are_not_started_by_processes(tmp_path):
    run = Run(tmp_path)
    variables = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1",
                 "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    result = subprocess.run(
        run.command("--processes", "2"), capture_output=True, text=True, env=ENVIRONMENT | variables
    )
    assert result.returncode == 1
    assert "leave --processes out under torchrun" in result.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="there is no GPU to run out of")
def test_more_processes_than_gpus_are_refused(tmp_path):
    run = Run(tmp_path)
    run.recipe.write_text(run.recipe.read_text().replace('device = "cpu"', 'device = "cuda"'))
    count = torch.cuda.device_count() + 1
    result = run.finish(*SOFTMAX, "--processes", str(count), "--set", f"train.batch_size={count}")
    assert result.returncode == 1
    assert f"process {count - 1} of this machine has no GPU" in result.stderr


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    left = [pid for pid in processes_with(MARK) if pid != os.getpid()]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, "processes were left behind"
