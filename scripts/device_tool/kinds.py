# SPDX-License-Identifier: Apache-2.0
"""The kinds of parts: configure, build, CTest, pytest and benchmarks."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from bundle import ROOT, DeviceError, say
from parts import Job, Part

# " 12/345 Test  #12: core.Dispatch.Case ......***Exception: SegFault  0.01 sec"
CTEST_LINE = re.compile(r"\s*(\d+)/(\d+) Test\s+#\d+: (.+?) \.+\s*(.*?)\s+([\d.]+) sec")
VARIABLE = r"([A-Za-z_]\w*)=(.*)"  # in front of a benchmark's command
CTEST_WORDS = {
    "Passed": "passed",
    "Skipped": "skipped",
    "Not Run (Disabled)": "skipped",
    "Not Run": "not run",
    "Timeout": "timeout",
}


class Configure(Part):
    kind = "configure"

    def prepare(self) -> None:
        options = self.job.options
        package = "ON" if options.pytest else "OFF"  # else it would replace another build's library
        # An earlier bundle's paths would stay in the cache.
        forget = ["-U", "PLX_INCLUDE_*", "-U", "PLX_LIBRARY_*"]
        variables = {
            "CMAKE_PREFIX_PATH": options.bundle,
            "PLX_PYTHON": self.job.python,
            "PLX_BENCH": "ON",
            "PLX_PYTHON_PACKAGE": package,
        }
        definitions = [f"{name}={value}" for name, value in variables.items()] + options.define
        where = ["--preset", "release", "-B", str(options.build_dir)]
        self.command = ["cmake", *where, *forget, *(f"-D{text}" for text in definitions)]


class Build(Part):
    kind = "build"

    def __init__(self, job: Job):
        super().__init__(job)
        self._failed: list[str] = []

    def prepare(self) -> None:
        options = self.job.options
        targets = ["--target", *options.targets] if options.targets else []
        parallel = ["--parallel", str(options.jobs)]
        command = ["cmake", "--build", str(options.build_dir), *parallel, *targets]
        self.command = [*command, "--", "-k", "0"]  # what can be built is, for the parts to come

    def read(self, line: str) -> None:
        if match := re.match(r"\[(\d+)/(\d+)\]", line):
            self.progress(f"{match[1]} of {match[2]} steps")
        elif match := re.match(r"FAILED: (?:\[code=\d+\] )?(\S+)", line):
            self._failed.append(match[1])
            say(f"{self.name}: failed: {match[1]}")

    def finish(self) -> None:
        if self._failed:
            count, first = len(self._failed), Path(self._failed[0]).name
            self.details = f"failed: {first}" + (f" and {count - 1} more" if count > 1 else "")
        elif self.status == "passed":
            self.details = " ".join(self.job.options.targets or ["everything"])


class Tests(Part):
    """A selection of CTest cases; tests.jsonl gets a line for each as it ends."""

    kind = "tests"

    def __init__(self, job: Job, selection: str):
        super().__init__(job, selection)
        self._selection = selection
        self._counts: Counter[str] = Counter()

    def prepare(self) -> None:
        options = self.job.options
        folder = ["ctest", "--test-dir", str(options.build_dir)]
        how = ["--output-on-failure", "--no-tests=error", "--parallel", str(options.jobs)]
        limit = ["--timeout", f"{options.test_timeout:g}"]
        self.command = [*folder, *how, *limit, *self._choice(folder)]

    def _choice(self, ctest: list[str]) -> list[str]:
        selection = self._selection
        without_slow = ["--label-exclude", "^slow$"]
        if selection.startswith("-"):
            return shlex.split(selection)
        if selection == "quick":
            return without_slow
        listing = subprocess.run(
            [*ctest, "--print-labels"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=self.job.options.tests_timeout,
            check=False,
        )
        if selection in re.findall(r"^  (\S+)$", listing.stdout, re.MULTILINE):
            label = ["--label-regex", f"^{selection}$"]
            return label if selection == "slow" else label + without_slow
        return ["--tests-regex", selection]

    def read(self, line: str) -> None:
        if not (match := CTEST_LINE.match(line)):
            return
        number, total, name, words, seconds = match.groups()
        words = words.strip("* :")
        if self.is_ending and words == "Exception: Interrupt":
            return  # ended with the part: CTest may outlive its case by a moment
        status = CTEST_WORDS.get(words, "failed")
        self._counts[status] += 1
        record = {"part": self.name, "name": name, "status": status, "seconds": float(seconds)}
        self.job.results.write("tests.jsonl", record)
        if status not in ("passed", "skipped"):
            say(f"{self.name}: {name}: {words}")
        self.progress(f"{number} of {total} cases")

    def finish(self) -> None:
        if counts := count_text(self._counts):
            self.details = f"{counts}; {self.details}" if self.status == "timeout" else counts


def count_text(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[status]} {status}" for status in sorted(counts))


class Pytest(Part):
    """One call of pytest; tests.jsonl gets its cases when it ends."""

    kind = "pytest"

    def __init__(self, job: Job, arguments: str):
        super().__init__(job, arguments)
        self._arguments = arguments
        self._report = job.results.folder / f".pytest-{os.getpid()}.xml"

    def prepare(self) -> None:
        report = f"--junitxml={self._report}"
        self.command = [self.job.python, "-m", "pytest", report, *shlex.split(self._arguments)]
        self.environment["PLX_BUILD_DIR"] = str(self.job.options.build_dir)

    def read(self, line: str) -> None:
        self.progress(line)

    def finish(self) -> None:
        counts: Counter[str] = Counter()
        try:
            cases = list(ElementTree.parse(self._report).iter("testcase"))
        except (OSError, ElementTree.ParseError):  # it was ended while, or before, it wrote
            cases = []
        for case in cases:
            tags = {child.tag for child in case}
            failed = "failed" if tags & {"failure", "error"} else "passed"
            status = "skipped" if "skipped" in tags else failed
            counts[status] += 1
            name = f"{case.get('classname')}::{case.get('name')}"
            seconds = float(case.get("time", "0"))
            record = {"part": self.name, "name": name, "status": status, "seconds": seconds}
            self.job.results.write("tests.jsonl", record)
        self._report.unlink(missing_ok=True)
        self.details = "; ".join(filter(None, (count_text(counts), self.details)))


class Bench(Part):
    """A program of the tree, built if it is not, or one in PATH, that prints its times."""

    kind = "bench"

    def __init__(self, job: Job, command: str):
        words = shlex.split(command)
        self._variables = {}
        while words and (match := re.match(VARIABLE, words[0])):
            self._variables[match[1]] = match[2]
            words = words[1:]
        self._words = words
        super().__init__(job, Path(words[0]).name)
        self._output = job.results.folder / f"{self.name.removeprefix('bench ')}.jsonl"

    def prepare(self) -> None:
        self._output.unlink(missing_ok=True)  # programs append
        self.environment |= self._variables
        program, arguments = self._program(), self._words[1:]
        known = subprocess.run(
            [program, "--help"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.job.options.bench_timeout,
            check=False,
        ).stdout
        added = {"--output": str(self._output), "--commit": self.job.commit}
        for option, value in added.items():
            given = any(word.split("=")[0] == option for word in arguments)
            if re.search(rf"{option}\b", known) and not given:
                arguments = [*arguments, option, value]
        self.command = [program, *arguments]

    def _program(self) -> str:
        name = self._words[0]
        if "/" in name:
            return str(ROOT / name)
        if self._build(name):
            for path in self.job.options.build_dir.rglob(name):
                if path.is_file() and os.access(path, os.X_OK):
                    return str(path)
        if found := shutil.which(name, path=self.environment["PATH"]):
            return found
        raise DeviceError(f"neither a target of this build nor a program in PATH: {name}")

    def _build(self, target: str) -> bool:
        """Brings the program up to date: else an earlier tree's times would pass for this one's."""
        options = self.job.options
        command = ["cmake", "--build", str(options.build_dir), "--parallel", str(options.jobs)]
        built = subprocess.run(
            [*command, "--target", target],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=options.build_timeout,
            check=False,
        )
        self.job.results.log(built.stdout)
        if built.returncode != 0 and "unknown target" not in built.stdout:
            raise DeviceError(f"{target} does not build")
        return built.returncode == 0

    def read(self, line: str) -> None:
        print(f"    {line}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self._output.exists():
            lines = len(self._output.read_text(encoding="utf-8").splitlines())
            wrote = f"{lines} line{'s' * (lines != 1)} in {self._output.name}"
            self.details = "; ".join(filter(None, (wrote, self.details)))
