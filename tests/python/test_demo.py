# SPDX-License-Identifier: Apache-2.0
"""scripts/demo.py as `make demo` runs it, with two steps for each twin."""

import os
import signal
import subprocess
import sys
import time

from support import REPO_ROOT, build_path


def run_demo(*arguments):
    build_path("apps/plx/plx")
    command = [sys.executable, str(REPO_ROOT / "scripts/demo.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
    continued = output / "text_parallax/metrics.jsonl"
    continued.write_text(continued.read_text() + '{"event": "start"}\n')
    refused = run_demo("--data", *data, "--output", output, "--steps", 1)
    assert refused.returncode == 1
    assert f"demo: {continued.parent} holds something else" in refused.stderr
    assert continued.exists()
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
    assert "recall_softmax holds something else than this demo left there" in result.stderr
    assert (tmp_path / "recall_softmax/model").read_text() == "kept"
    assert (tmp_path / "corpus/notes.txt").read_text() == "kept"


def test_too_little_text_ends_the_demo_before_the_first_run(tmp_path):
    (tmp_path / "a.txt").write_text("short text\n")
    output = tmp_path / "demo"
    result = run_demo("--data", tmp_path / "a.txt", "--output", output, "--steps", 1)
    assert result.returncode == 1
    assert "tokens for train, at least 257 are needed" in result.stderr
    assert [path.name for path in output.iterdir()] == ["corpus"]


def test_ctrl_c_saves_the_run_and_ends_in_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("text\n" * 2000)
    output = tmp_path / "demo"
    command = [sys.executable, str(REPO_ROOT / "scripts/demo.py"), "--output", str(output)]
    process = subprocess.Popen(
        [*command, "--data", str(tmp_path / "a.txt"), "--steps", "100000"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as on a terminal
        # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = output / "recall_softmax/metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        metrics.exists() and '"train"' in metrics.read_text()
    ):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 130, message
    assert "Traceback" not in message
    assert message.splitlines()[-1].startswith("demo: stopped by Ctrl-C")
    assert (output / "recall_softmax/latest/model.safetensors").exists()
