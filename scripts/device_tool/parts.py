# SPDX-License-Identifier: Apache-2.0
"""A part of a run: one command with a limit, its log, and its line in run.jsonl."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from bundle import ROOT, DeviceError, say

# What is left to a command after SIGINT, at which pytest still writes its results.
GRACE_SECONDS = 10.0
PROGRESS_SECONDS = 10.0


class Results:
    """The output folder. Each line is written when its fact is known: a killed run keeps it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        names = ("run.jsonl", "tests.jsonl", "run.log")
        self._files = {name: (folder / name).open("w", encoding="utf-8") for name in names}

    def log(self, line: str) -> None:
        self._files["run.log"].write(line)
        self._files["run.log"].flush()

    def write(self, name: str, record: dict) -> None:
        self._files[name].write(json.dumps(record, ensure_ascii=False) + "\n")
        self._files[name].flush()


@dataclass
class Job:
    """What all parts of a run share."""

    options: Namespace
    python: str
    commit: str
    environment: dict[str, str]
    results: Results
    names: set[str] = field(default_factory=set)

    def unique(self, name: str) -> str:
        """The name, with a number if an earlier part has it."""
        number, given = 1, name
        while given in self.names:
            number += 1
            given = f"{name}-{number}"
        self.names.add(given)
        return given


def end_group(process: subprocess.Popen) -> None:
    """Ends a command and what it started, which share a process group."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    if process.poll() is None:  # in a driver call, from which no signal wakes it
        say(f"process {process.pid} does not end")


class Part:
    """One command. Kinds of parts say what it is and what they read from its output."""

    kind: ClassVar[str]

    def __init__(self, job: Job, what: str = ""):
        self.job = job
        self.name = job.unique(f"{self.kind} {what}".strip())
        self.command: list[str] = []
        self.environment = dict(job.environment)
        self.status = "not run"  # passed, failed, timeout, stopped
        self.seconds = 0.0
        self.details = ""
        self.is_ending = False  # its limit was reached, or it was stopped
        self._next_progress = 0.0

    def prepare(self) -> None:
        """Sets the command; an error if there is none."""

    def read(self, line: str) -> None:
        """Gets each line that the command prints."""

    def finish(self) -> None:
        """Adds details after the command."""

    def run(self) -> None:
        """Runs the command to its end or its limit, and writes the part's line whatever happens."""
        timeout = getattr(self.job.options, f"{self.kind}_timeout")
        say(f"{self.name}: started, at most {timeout:g} s")
        started = time.monotonic()
        self._next_progress = started + PROGRESS_SECONDS
        try:
            self.prepare()
            self._run_command(timeout)
        except (DeviceError, OSError, subprocess.SubprocessError) as error:
            self.status, self.details = "failed", str(error)
        except KeyboardInterrupt:
            self.status = "stopped"
            raise
        finally:
            self.seconds = time.monotonic() - started
            self.finish()
            self.write()
            say(", ".join(filter(None, (f"{self.name}: {self.status}", self.details))))

    def progress(self, text: str) -> None:
        """Says how far the command is, but not too often."""
        if time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PROGRESS_SECONDS
            say(f"{self.name}: {text}")

    def write(self) -> None:
        record = {
            "event": "part",
            "part": self.name,
            "status": self.status,
            "seconds": round(self.seconds, 2),
            "details": self.details,
            "command": shlex.join(self.command),
        }
        self.job.results.write("run.jsonl", record)

    def _run_command(self, timeout: float) -> None:
        self.job.results.log(f"==== {self.name}: {shlex.join(self.command)}\n")
        process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        last_lines: deque[str] = deque(maxlen=20)

        def read_lines() -> None:
            for line in process.stdout:
                self.job.results.log(line)
                last_lines.append(line)
                self.read(line.rstrip("\n"))

        reader = threading.Thread(target=read_lines, daemon=True)
        reader.start()
        try:
            self.status = "passed" if process.wait(timeout) == 0 else "failed"
        except subprocess.TimeoutExpired:
            self.status, self.details = "timeout", f"ended after {timeout:g} s"
        finally:
            self.is_ending = True
            end_group(process)  # also what a command that has ended left in its group
            reader.join(GRACE_SECONDS)
        if self.status == "failed":
            self.details = f"exit status {process.returncode}"
            sys.stderr.writelines(f"    {line}" for line in last_lines)
