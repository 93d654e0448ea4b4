# SPDX-License-Identifier: Apache-2.0
"""`plx train` as a program: signals, kills, full disks, bad recipes, numbers that blow up."""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file
from support import build_path
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from train_support import RECIPE, Run, check_whole


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def assert_same_state(left, right):
    for name in ("model.safetensors", "training/optimizer.safetensors"):
        ours, theirs = load_file(left / name), load_file(right / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_stops(run, tmp_path, number):
    process = run.start()
    run.wait_for_step(3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} after step" in errors
    assert "--resume" in errors
    (checkpoint,) = run.checkpoints()
    check_whole(checkpoint)
    step = run.lines("end")[0]["step"]

    # Going on from there is as if nothing had happened.
    assert run.finish("--resume", "--stop-at", str(step + 2)).returncode == 0
    (tmp_path / "whole").mkdir()
    whole = Run(tmp_path / "whole")
    assert whole.finish("--stop-at", str(step + 2)).returncode == 0
    assert_same_state(run.output / "latest", whole.output / "latest")


def test_a_kill_at_any_moment_leaves_the_last_checkpoint_whole(run):
    settings = ["--set", "checkpoint.every_steps=1"]
    last_step = 0
    for kill in range(6):
        process = run.start("--resume", *settings)
        # The second step is logged after the first is saved; saving it is what the kill meets.
        run.wait_for_step(last_step + 2, process)
        time.sleep(0.013 * kill)
        process.kill()
        process.communicate()
        checkpoints = run.checkpoints()
        for checkpoint in checkpoints:
            check_whole(checkpoint)
        check_whole((run.output / "latest").resolve())
        last_step = int(checkpoints[-1].name.removeprefix("step_"))
    assert last_step >= 6
    result = run.finish("--resume", "--stop-at", str(last_step + 1), *settings)
    assert result.returncode == 0, result.stderr
    steps = [line["step"] for line in run.lines("train")]
    assert steps == list(range(1, last_step + 2)), "no step is missing or reported twice"


def test_a_full_disk_is_reported_and_the_last_checkpoint_stays(run):
    assert run.finish("--stop-at", "2").returncode == 0
    before = load_file(run.output / "latest" / "model.safetensors")

    def limit_file_size():
        # Writing beyond the limit fails as on a full disk once the signal is ignored.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    result = run.finish(
        "--resume", "--stop-at", "4", preexec_fn=limit_file_size, restore_signals=False
    )
    assert result.returncode == 1
    assert "model.safetensors" in result.stderr
    assert "too large" in result.stderr
    newest = run.output / "step_00000002"
    assert result.stderr.endswith(f"; the newest checkpoint is {newest}\n")
    assert [path.name for path in run.checkpoints()] == ["step_00000002"]
    after = load_file(run.output / "latest" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    leftovers = [p.name for p in run.output.iterdir() if p.name.startswith(".")]
    assert leftovers == []
    assert run.finish("--resume", "--stop-at", "4").returncode == 0


def test_metrics_that_cannot_be_written_cost_no_step(run):
    assert run.finish("--stop-at", "2").returncode == 0
    metrics = run.output / "metrics.jsonl"
    limit = 300_000  # more than any file of a checkpoint
    kept = '{"event": "note", "step": 2, "text": "%s"}\n'
    room = 2000  # for some five lines
    metrics.write_text(metrics.read_text() + kept % ("x" * (limit - room)))

    def limit_file_size():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = run.finish("--resume", preexec_fn=limit_file_size, restore_signals=False)
    assert result.returncode == 1
    newest = run.checkpoints()[-1]
    step = int(newest.name.removeprefix("step_"))
    assert step > 2
    assert result.stderr.splitlines()[-1] == (
        f"plx: cannot write {metrics}: File too large; "
        f"the state after step {step} is saved in {newest}"
    )
    check_whole(newest)
    assert run.finish("--resume", "--stop-at", str(step + 1)).returncode == 0
    assert run.lines("train")[-1]["step"] == step + 1


def obey_permissions():
    """Root may write where the permission bits say no; without these capabilities it may not."""
    if os.geteuid() == 0:
        drop_capability, override, search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_*
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (override, search):
            if libc.prctl(drop_capability, capability, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "prctl")


@pytest.fixture
def bound_by_permissions():
    try:
        subprocess.run(["true"], check=True, preexec_fn=obey_permissions)
    except subprocess.SubprocessError:
        pytest.skip("root that may not drop CAP_DAC_OVERRIDE writes to read-only folders")


@pytest.mark.usefixtures("bound_by_permissions")
def test_a_read_only_folder_is_reported_at_the_start(run):
    run.output.parent.joinpath("locked").mkdir(mode=0o555)
    run.output = run.output.parent / "locked" / "output"
    result = run.finish("--stop-at", "2", preexec_fn=obey_permissions)
    assert result.returncode == 1
    assert "locked/output" in result.stderr
    assert "Permission denied" in result.stderr


@pytest.mark.usefixtures("bound_by_permissions")
def test_a_folder_that_becomes_read_only_costs_the_steps_since_the_last_checkpoint(run):
    assert run.finish("--stop-at", "2").returncode == 0
    process = run.start("--resume", preexec_fn=obey_permissions)
    run.wait_for_step(4, process)
    run.output.chmod(0o555)
    try:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        run.output.chmod(0o755)
    assert process.returncode == 1
    last_line = errors.splitlines()[-1]
    assert last_line.startswith("plx: the state after step ")
    assert "output/step_0000" in last_line
    assert "Permission denied" in last_line
    assert last_line.endswith("; the newest checkpoint is " + str(run.output / "step_00000002"))
    assert [path.name for path in run.checkpoints()] == ["step_00000002"]
    check_whole(run.output / "step_00000002")
    assert run.finish("--resume", "--stop-at", "4").returncode == 0


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk to try needs the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_too_small_for_a_checkpoint_is_refused_at_the_start(run):
    with small_disk(run.output, "64k"):
        result = run.finish()
    assert result.returncode == 1
    assert result.stderr == (
        f"plx: a checkpoint takes 1 MiB, and the disk of {run.output} has 0 MiB left\n"
    )


def test_a_run_too_large_for_the_disk_does_not_delete_the_older_one(run):
    with small_disk(run.output, "2m"):
        assert run.finish("--stop-at", "2").returncode == 0
        result = run.finish("--overwrite", "--set", "model.hidden_size=1024")
        assert result.returncode == 1
        message = f", and the disk of {run.output} has 1 MiB left without the older run\n"
        assert result.stderr.endswith(message)
        assert len(run.lines("train")) == 2
        check_whole(run.output / "step_00000002")
        disk = os.statvfs(run.output)  # what is deleted counts as room
        filler = disk.f_bavail * disk.f_frsize - 65536
        run.output.joinpath("filler").write_bytes(bytes(filler))
        result = run.finish("--overwrite", "--stop-at", "1")
        assert result.returncode == 0, result.stderr


def test_metrics_on_a_full_disk_end_the_run_with_the_newest_checkpoint_named(run):
    with small_disk(run.output, "2m"):
        assert run.finish("--stop-at", "2").returncode == 0
        process = run.start("--resume")
        run.wait_for_step(3, process)
        filler = run.output / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        last = errors.splitlines()[-1]
        assert last.startswith(f"plx: cannot write {run.output}/metrics.jsonl: No space left")
        assert " is not saved (" in last
        assert last.endswith(f"; the newest checkpoint is {run.output / 'step_00000002'}")
        check_whole(run.output / "step_00000002")


def test_numbers_that_blow_up_stop_the_run(run):
    result = run.finish("--set", "optimizer.lr=1000", "--set", "train.steps=50")
    assert result.returncode == 1
    assert " is NaN, infinite or beyond 1e+15; " in result.stderr
    assert "step " in result.stderr
    assert run.lines("not_finite")
    for checkpoint in run.checkpoints():
        check_whole(checkpoint)


def test_a_bad_recipe_is_refused_with_its_line(run):
    run.recipe.write_text(RECIPE.replace("hidden_size = 32", "hiden_size = 32"))
    result = run.finish()
    assert result.returncode == 1
    line = RECIPE.splitlines().index("hidden_size = 32") + 1
    assert f"recipe.toml:{line}: unknown key 'hiden_size'" in result.stderr
    assert "'hidden_size'" in result.stderr
    assert not run.output.exists()


def test_a_setting_without_effect_is_a_warning(run):
    result = run.finish("--stop-at", "1", "--set", "data.path=somewhere")
    assert result.returncode == 0
    assert "warning" in result.stderr
    assert "data.path has no effect" in result.stderr
    assert "--stop-at" not in result.stderr
    result = run.finish("--resume", "--steps", "2", "--stop-at", "3")
    assert "plx: warning: --stop-at 3 has no effect: train.steps is 2\n" in result.stderr


def test_no_loss_is_reported_where_no_step_was_made(run):
    done = run.finish("--steps", "2")
    assert "loss of the last step" in done.stdout
    again = run.finish("--steps", "2", "--resume")
    assert again.returncode == 0
    assert "loss of the last step" not in again.stdout
    assert "validation loss" in again.stdout


def test_a_second_run_in_the_folder_is_refused(run):
    process = run.start()
    run.wait_for_step(2, process)
    for flag in ("--resume", "--overwrite"):
        result = run.finish(flag)
        assert result.returncode == 1
        assert f"{run.output} is in use by another process" in result.stderr
    process.kill()
    process.communicate()
    assert run.finish("--stop-at", "1").returncode == 1, "the killed run's metrics were lost"
    assert run.finish("--overwrite", "--stop-at", "1").returncode == 0


def test_going_on_does_not_need_the_weights_that_the_run_started_from(run, tmp_path):
    assert run.finish("--stop-at", "1").returncode == 0
    run.output.rename(tmp_path / "first")
    start = RECIPE.index("[model]"), RECIPE.index("[data]")
    model = f'[model]\ninit_from = "{tmp_path}/first/latest"\n'
    run.recipe.write_text(RECIPE[: start[0]] + model + RECIPE[start[1] :])
    assert run.finish("--stop-at", "1").returncode == 0
    (tmp_path / "first").rename(tmp_path / "moved")
    result = run.finish("--resume", "--stop-at", "2")
    assert result.returncode == 0, result.stderr


def test_resuming_another_recipe_says_what_differs(run):
    assert run.finish("--stop-at", "1").returncode == 0
    result = run.finish("--resume", "--set", "model.hidden_size=64", "--set", "data.seed=3")
    assert result.returncode == 1
    assert "model.hidden_size: 32 in the checkpoint, 64 now" in result.stderr
    assert "data.seed: 1 in the checkpoint, 3 now" in result.stderr


def test_the_help_explains_and_bad_usage_is_told_apart(run):
    program = build_path("apps/plx/plx")
    text = subprocess.run(
        [program, "train", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for word in ("--resume", "--output", "--set", "Examples", "metrics.jsonl"):
        assert word in text
    settings = subprocess.run(
        [program, "train", "--list-settings"], capture_output=True, text=True, check=True
    ).stdout
    assert "newton_schulz" in settings
    assert "RECIPE (required)" in text  # as `CHECKPOINT (required)` of the other commands
    assert run.finish("--no-such-option").returncode == 2
    assert subprocess.run([program, "train"], capture_output=True).returncode == 2


def prepare_text(folder, name, seed):
    """Tokens of a small made-up corpus."""
    words = ["parallax", "attention", "probe", "softmax", "covariance", "\n"]
    generator = torch.Generator().manual_seed(seed)
    source = folder / f"{name}_text"
    source.mkdir()
    for document in range(12):
        picks = torch.randint(0, len(words), (200,), generator=generator)
        text = " ".join(words[int(pick)] for pick in picks)
        (source / f"{document}.txt").write_text(text)
    tokens = folder / name
    program = build_path("apps/plx/plx")
    command = [program, "prepare", source, "--output", tokens, "--validation-fraction", "0.2"]
    subprocess.run(command, check=True, capture_output=True)
    return tokens


@pytest.fixture
def text_run(run, tmp_path):
    tokens = prepare_text(tmp_path, "tokens", seed=1)
    recipe = RECIPE.replace('kind = "in_context_recall"', f'kind = "shards"\npath = "{tokens}"')
    run.recipe.write_text(recipe.replace("vocab_size = 16", "vocab_size = 257"))
    return run


def test_a_profile_has_the_operators_of_three_steps(run, tmp_path):
    trace = tmp_path / "trace.json"
    result = run.finish("--steps", "14", "--profile", trace)
    assert result.returncode == 0, result.stderr
    events = json.loads(trace.read_text())["traceEvents"]
    backward = [e for e in events if e.get("name") == "parallax::attention_backward"]
    assert len(backward) == 3 * 2  # steps, layers
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_profile_that_cannot_be_made_leaves_an_older_run_alone(run, tmp_path):
    assert run.finish("--steps", "1").returncode == 0
    before = (run.output / "metrics.jsonl").read_bytes()
    trace, nowhere = tmp_path / "trace.json", tmp_path / "missing/trace.json"
    for steps, path, words in (
        (12, trace, "a profile needs 13 steps, and 12 are left of the run"),
        (13, nowhere, f"the folder of the profile {nowhere} does not exist"),
    ):
        result = run.finish("--steps", str(steps), "--overwrite", "--profile", path)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1] == f"plx: {words}"
        assert (run.output / "metrics.jsonl").read_bytes() == before
        assert (run.output / "latest").exists()
    assert not trace.exists()


def test_text_is_trained_on_and_the_tokenizer_travels(text_run):
    assert text_run.finish("--steps", "3").returncode == 0
    (evaluation,) = text_run.lines("evaluation")
    # Bytes are the tokens, so that only end-of-document targets tell nats per byte and token apart.
    nats = evaluation["bits_per_byte"] * 0.6931471805599453
    assert evaluation["validation_loss"] == pytest.approx(nats, rel=0.05)
    latest = text_run.output / "latest"
    tokens = text_run.recipe.parent / "tokens"
    assert (latest / "tokenizer.json").read_text() == (tokens / "tokenizer.json").read_text()
    assert json.loads((latest / "config.json").read_text())["eos_token_id"] == 256


def test_a_checkpoint_with_another_tokenizer_of_the_same_size_is_refused(text_run):
    assert text_run.finish("--steps", "1").returncode == 0
    latest, text = text_run.output / "latest", text_run.recipe
    program = build_path("apps/plx/plx")
    commands = ["generate", latest, "--prompt", "a"], ["eval", latest, "--data", text]
    for command in commands:
        subprocess.run([program, *command], check=True, capture_output=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=257, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([RECIPE], trainer)
    assert tokenizer.get_vocab_size() == 257
    tokenizer.save(str(latest / "tokenizer.json"))
    for command in commands:
        result = subprocess.run([program, *command], capture_output=True, text=True)
        assert result.returncode == 1
        assert "is not the one that the model was trained with" in result.stderr


def test_resuming_with_other_text_is_refused(text_run, tmp_path):
    assert text_run.finish("--stop-at", "2").returncode == 0
    other = prepare_text(tmp_path, "other", seed=2)
    result = text_run.finish("--resume", "--data", str(other), "--stop-at", "4")
    assert result.returncode == 1
    assert "cannot resume from" in result.stderr
    moved = tmp_path / "moved"
    (tmp_path / "tokens").rename(moved)
    assert text_run.finish("--resume", "--data", str(moved), "--stop-at", "4").returncode == 0


def test_text_resumes_bit_for_bit(text_run, tmp_path):
    settings = ["--set", "train.steps=40", "--set", "train.compute=bfloat16"]
    assert text_run.finish(*settings, "--stop-at", "7").returncode == 0
    assert text_run.finish(*settings, "--resume").returncode == 0
    (tmp_path / "whole").mkdir()
    whole = Run(tmp_path / "whole")
    whole.recipe.write_text(text_run.recipe.read_text())
    assert whole.finish(*settings).returncode == 0
    assert_same_state(text_run.output / "latest", whole.output / "latest")


def test_a_vocabulary_too_small_for_the_text_is_refused(text_run):
    result = text_run.finish("--set", "model.vocab_size=100")
    assert result.returncode == 1
    assert "100" in result.stderr
    assert "257" in result.stderr
