# SPDX-License-Identifier: Apache-2.0
"""scripts/demo.py as `make demo` runs it, with two steps for each twin."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support import REPO_ROOT, build_path


def run_demo(*arguments, **options):
    build_path("apps/plx/plx")
    command = [sys.executable, str(REPO_ROOT / "scripts/demo.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_several_paths_give_a_report_with_tables_pictures_and_a_sample(tmp_path):
    folder = tmp_path / "some drafts"
    folder.mkdir()
    text = "".join(f"line {i} of a text that is long enough to learn from\n" for i in range(2000))
    (tmp_path / "notes.txt").write_text(text)
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"draft {i}\n{text}")
    output = tmp_path / "demo"
    data = (tmp_path / "notes.txt", folder)
    result = run_demo("--data", *data, "--output", output, "--steps", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{output / 'report.md'}\n"
    for picture in ("recall.png", "loss.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")
    report = (output / "report.md").read_text()
    assert "notes.txt`" in report
    assert "some drafts`" in report
    rows = [line.split("|")[1].strip() for line in report.splitlines() if line.startswith("| ")]
    wanted = ("parameters", "training tokens", "tokens/s", "peak memory, MiB")
    assert all(rows.count(label) == 2 for label in wanted), rows
    assert {"validation accuracy", "validation perplexity", "validation bits per byte"} <= set(rows)
    assert "Accuracy 0.99 was first seen at step: softmax never" in report
    assert "training parallax (run 5 of 5, about " in result.stderr
    learnt = "| first evaluation with accuracy 0.99, step | - | - | - |\n"  # not in two steps
    assert learnt in report
    assert "| - |" not in report.replace(learnt, ""), "a number is missing"
    again = run_demo("--data", *data, "--output", output, "--steps", 1)  # its own runs: replaced
    assert again.returncode == 0, again.stderr
    assert again.stderr.splitlines()[-1].startswith(f"demo: wrote {output / 'report.md'} in ")
    assert "after `def `" in report
    assert report.split("````")[1].strip(), "the sample is empty"


def test_a_missing_path_is_named_before_anything_is_written(tmp_path):
    result = run_demo("--data", tmp_path / "absent.txt", "--output", tmp_path / "demo")
    assert result.returncode == 1
    assert "no file or folder at" in result.stderr
    assert "absent.txt" in result.stderr
    assert not (tmp_path / "demo").exists()


def test_folders_of_others_are_refused_and_kept(tmp_path):
    (tmp_path / "a.txt").write_text("text\n" * 2000)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/notes.txt").write_text("kept")
    result = run_demo("--data", tmp_path / "a.txt", "--output", tmp_path, "--steps", 1)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "corpus: this folder holds other things than prepared tokens" in result.stderr
    (tmp_path / "recall_softmax").mkdir()
    (tmp_path / "recall_softmax/model").write_text("kept")
    result = run_demo("--data", tmp_path / "a.txt", "--output", tmp_path, "--steps", 1)
    assert result.returncode == 1
    assert f"continued since: {tmp_path / 'recall_softmax'}; move it away" in result.stderr
    assert f"; to delete it: rm -r {tmp_path / 'recall_softmax'}\n" in result.stderr
    assert (tmp_path / "recall_softmax/model").read_text() == "kept"
    assert (tmp_path / "corpus/notes.txt").read_text() == "kept"


def test_too_little_text_ends_the_demo_before_the_first_run(tmp_path):
    (tmp_path / "a.txt").write_text("short text\n")
    output = tmp_path / "demo"
    result = run_demo("--data", tmp_path / "a.txt", "--output", output, "--steps", 1)
    assert result.returncode == 1
    assert "tokens for train, at least 257 are needed" in result.stderr
    assert sorted(path.name for path in output.iterdir()) == ["corpus", "runs.json"]


@pytest.fixture
def demo(tmp_path):
    return Demo(tmp_path)


def obey_signals():
    """A shell's background jobs ignore SIGINT, those under nohup SIGHUP; children inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Demo:
    """A demo that trains for hours, and what it has written."""

    def __init__(self, folder):
        (folder / "a.txt").write_text("text\n" * 2000)
        self.output = folder / "demo"
        self.run = self.output / "recall_softmax"
        self.arguments = ("--data", folder / "a.txt", "--output", self.output)

    def start(self):
        """The process, in a group of its own as on a terminal, once its first run has steps."""
        before = self.start_line_inode()
        command = [sys.executable, REPO_ROOT / "scripts/demo.py", *self.arguments]
        process = subprocess.Popen(
            [*map(str, command), "--steps", "100000"],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=obey_signals,
        )
        metrics = self.run / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1]
            if self.start_line_inode() != before and '"train"' in metrics.read_text():
                return process
            time.sleep(0.05)
        raise AssertionError("the demo did not get going")

    def start_line_inode(self):
        metrics = self.run / "metrics.jsonl"
        return metrics.stat().st_ino if metrics.exists() else None

    def has_checkpoint(self):
        return any(self.run.glob("step_*/model.safetensors"))

    def check_refused(self, *taken):
        files = {path: path.read_bytes() for path in self.output.rglob("*") if path.is_file()}
        result = run_demo(*self.arguments, "--steps", 1)
        assert result.returncode == 1
        assert result.stderr == (
            "demo: not left there by this demo, or continued since: "
            f"{', '.join(map(str, taken))}; move it away to keep it; to delete it: "
            f"rm -r {' '.join(map(str, taken))}\n"
        )
        for path, contents in files.items():
            assert path.read_bytes() == contents


def train(*arguments):
    command = [build_path("apps/plx/plx"), "train", "--quiet", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_ctrl_c_saves_the_run_and_ends_in_one_line(demo):
    process = demo.start()
    os.killpg(process.pid, signal.SIGINT)
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 130, message
    assert "Traceback" not in message
    assert message.splitlines()[-1].startswith("demo: stopped by Ctrl-C")
    assert demo.has_checkpoint()


def test_a_demo_that_was_ended_in_any_way_can_be_repeated(demo):
    for number, kill, saves in (
        (signal.SIGTERM, os.killpg, True),
        (signal.SIGTERM, os.kill, True),
        (signal.SIGHUP, os.killpg, False),
        (signal.SIGKILL, os.kill, None),
        (signal.SIGKILL, os.killpg, False),
    ):
        process = demo.start()  # starts over in the folder that the one before has left
        kill(process.pid, number)
        message = process.communicate(timeout=120)[1]  # until plx has closed its end, too
        assert "Traceback" not in message
        if number != signal.SIGKILL:
            assert process.returncode == 128 + number, message
            assert message.splitlines()[-1].startswith(f"demo: stopped by {number.name}; ")
        if saves is not None:
            assert demo.has_checkpoint() == saves
    # What a kill or a power cut leaves of a run before its first line.
    (demo.run / "metrics.jsonl").write_bytes(bytes(100))
    (demo.run / ".metrics.jsonl.tmp-7-0").write_text("")
    (demo.output / "loss.png").mkdir()
    result = run_demo(*demo.arguments, "--steps", 1)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"demo: cannot write {demo.output / 'loss.png'}: Is a directory"
    )
    assert (demo.output / "recall.png").exists()
    assert not list(demo.output.glob(".*")), "something is left half written"


def test_a_run_that_was_continued_is_refused_and_kept(demo):
    process = demo.start()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    recipe = REPO_ROOT / "recipes/demo_recall_softmax.toml"
    # Without a checkpoint the run begins again at its first step: as it is now, it is the user's.
    train(recipe, "--output", demo.run, "--resume", "--stop-at", "1")
    demo.check_refused(demo.run)
    (demo.run / "metrics.jsonl").unlink()
    demo.check_refused(demo.run)
    (demo.output / "runs.json").write_text('{"recall_softmax": 1}')
    demo.check_refused(demo.run, demo.output / "runs.json")
    shutil.rmtree(demo.run)
    (demo.output / "runs.json").unlink()
    process = demo.start()
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate()
    step = json.loads((demo.run / "latest/training/state.json").read_text())["step"]
    steps = ("--steps", "100000", "--stop-at", str(step + 1))
    train(recipe, "--output", demo.run, "--resume", *steps)
    demo.check_refused(demo.run)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("text\n" * 2000)
    result = run_demo("--data", text, "--output", text / "demo")
    assert result.returncode == 1
    assert result.stderr == f"demo: cannot write {text / 'demo'}: Not a directory\n"

    def limit_file_size():  # as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    output = tmp_path / "demo"
    result = run_demo("--data", text, "--output", output, preexec_fn=limit_file_size)
    assert result.returncode == 1
    assert result.stderr == f"demo: cannot write {output / 'runs.json'}: File too large\n"
    assert list(output.iterdir()) == []
