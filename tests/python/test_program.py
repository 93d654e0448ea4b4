# SPDX-License-Identifier: Apache-2.0
"""plx as a program: commands, checks of options, help, environment, messages about bad files."""

import json
import os
import re
import resource
import subprocess

import pytest
from support import REPO_ROOT, build_path

COMMANDS = ["prepare", "train", "generate", "eval", "info"]


def plx(*arguments, status=0, **environment):
    """(stdout, stderr) of a run whose exit status must be `status`."""
    done = subprocess.run(
        [str(build_path("apps/plx/plx")), *map(str, arguments)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_an_unknown_command_is_named_with_the_nearest_and_all_others():
    out, message = plx("tran", "x.toml", status=2)
    assert out == ""
    assert message.startswith("plx: no command 'tran', the nearest is 'train' (commands: ")
    assert all(command in message for command in COMMANDS)


def test_help_is_a_command_too():
    assert plx("help") == plx("--help")
    assert all(command in plx("help")[0] for command in COMMANDS)
    assert plx("help", "train") == plx("train", "--help")
    message = plx("help", "bogus", status=2)[1]
    assert "no command 'bogus' (commands: " in message, "none is near"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("train x.toml --steps 0", "--steps: given 0, a whole number of at least 1 is needed"),
        ("train x.toml --stop-at 1.5", "--stop-at: given 1.5, a whole number of at least 1"),
        ("train x.toml --steps 010", "--steps: given 010, a whole number"),
        ("generate x --top-p 0", "--top-p: given 0, a number above 0 and at most 1 is needed"),
        ("generate x --min-p nan", "--min-p: given nan, a number from 0 to 1 is needed"),
        ("generate x --temperature hot", "--temperature: given hot, a number from 0 to 1000000"),
        ("generate x --samples 5000", "--samples: given 5000, a whole number from 1 to 4096"),
        ("generate x --seed -1", "--seed: given -1, a whole number of at least 0 is needed"),
        ("eval x --data . --context 0", "--context: given 0, a whole number from 1 to 2147483648"),
        ("prepare -o x --threads 0", "--threads: given 0, a whole number from 1 to 4096"),
        ("prepare -o x --shard-tokens -3", "--shard-tokens: given -3, a whole number of at least"),
        ("prepare -o x --validation-fraction 1", "given 1, a number from 0 to 0.999 is needed"),
        ("prepare -o x --seed abc", "--seed: given abc, a whole number of at least 0 is needed"),
    ],
)
def test_a_number_out_of_range_is_told_with_the_range(arguments, text):
    out, message = plx(*arguments.split(), status=2)
    assert text in message and out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_names_types_by_short_words(command):
    text = plx(command, "--help")[0]
    assert not re.search(r"\b(INT|UINT|FLOAT|POSITIVE|NUMBER)\b|\d{30}| in \[", text)


def threads(**environment):
    return json.loads(plx("info", "--json", **environment)[0])["torch"]["threads"]


def test_the_number_of_threads_is_that_of_the_environment():
    assert threads(PLX_NUM_THREADS="1") == 1
    assert threads(PLX_NUM_THREADS="3") == 3


@pytest.mark.parametrize("value", ["-3", "abc", "0", "2x"])
def test_a_bad_number_of_threads_is_refused(value):
    for command in (["info"], ["train", "x.toml"], ["generate", "x"]):
        message = plx(*command, status=1, PLX_NUM_THREADS=value)[1]
        assert message == f"plx: PLX_NUM_THREADS is '{value}'; it must be a number from 1 to 4096\n"
    assert "Usage" in plx("--help", PLX_NUM_THREADS=value)[0]


def test_info_reports_a_forced_backend_that_does_not_exist():
    text = plx("info", PLX_BACKEND="gpu9")[0]
    assert "problem: PLX_BACKEND forces the backend 'gpu9', which does not exist" in text
    assert "cpu, reference" in text
    for backend in ("", "reference"):
        assert "problem:" not in plx("info", PLX_BACKEND=backend)[0]


def test_info_lists_head_sizes_as_ranges_and_a_reason_once():
    text = plx("info", PLX_BACKEND="")[0]
    cpu = text.split("backend cpu")[1].split("\n\n")[0]
    assert re.search(r"float32 +1 to 256 +1 to 256 +1 to 256 *\n", cpu)
    assert re.search(r"float64 +- +- +- *\n", cpu)
    assert cpu.count("dtype float64 is not built") == 1
    assert "not float64 forward, float64 backward, float64 decode:" in cpu


@pytest.mark.parametrize("arguments", [["--help"], ["info"], ["train", "--list-settings"]])
def test_output_that_is_lost_is_an_error(arguments):
    with open("/dev/full", "w") as full:
        command = [str(build_path("apps/plx/plx")), *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("plx: cannot write to standard output: ")
    assert done.stderr.count("\n") == 1


def test_a_size_beyond_the_memory_is_one_line(tmp_path):
    recipe = REPO_ROOT / "recipes/demo_recall_softmax.toml"
    size = ("--set", "model.hidden_size=9999999999")
    message = plx("train", recipe, "--output", tmp_path / "run", *size, status=1)[1]
    assert message.startswith("plx: out of memory: you tried to allocate ")
    assert message.count("\n") == 1


def test_memory_that_runs_out_is_one_line(tmp_path):
    with open(tmp_path / "prompt", "wb") as file:
        file.truncate(1 << 34)  # takes no room on the disk

    def limit_memory():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))

    done = subprocess.run(
        [build_path("apps/plx/plx"), "generate", tmp_path, "--prompt-file", tmp_path / "prompt"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=limit_memory,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"plx: out of memory: the system gave no more, after \d+ MiB\n", done.stderr
    )


def test_messages_about_json_are_plain_words(tmp_path):
    def refused(*arguments):
        message = plx(*arguments, status=1)[1]
        assert "[json" not in message and "exception" not in message
        return message

    lines = tmp_path / "bad.jsonl"
    lines.write_text('{"text": "x"}\n{"text": ')
    message = refused("prepare", "-o", tmp_path / "out", lines)
    assert "bad.jsonl:2: not JSON: parse error at line 1, column" in message
    text = tmp_path / "a.txt"
    text.write_text("x")
    for content, words in (("{", "is not JSON: parse error"), ("{}", "is not a tokenizer.json: ")):
        (tmp_path / "tokenizer.json").write_text(content)
        arguments = ("--tokenizer", tmp_path / "tokenizer.json", text)
        assert words in refused("prepare", "-o", tmp_path / "out", *arguments)
    (tmp_path / "config.json").write_text("{")
    assert "config.json: parse error" in refused("generate", tmp_path, "--prompt", "a")
