# SPDX-License-Identifier: Apache-2.0
"""scripts/demo.py as `make demo` runs it, with two steps for each twin."""

import subprocess
import sys

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
    assert "| - |" not in report, "a number is missing"
    assert "after `def `" in report
    assert report.split("````")[1].strip(), "the sample is empty"


def test_a_missing_path_is_named_before_anything_is_written(tmp_path):
    result = run_demo("--data", tmp_path / "absent.txt", "--output", tmp_path / "demo")
    assert result.returncode == 1
    assert "no file or folder at" in result.stderr
    assert "absent.txt" in result.stderr
    assert not (tmp_path / "demo").exists()
