# SPDX-License-Identifier: Apache-2.0
"""scripts/device: the bundle, and runs in a small tree with the real CMake, ninja and CTest.

The small tree has the tool, cmake/packages.* and programs of a few lines. A module named torch and
programs named nvcc and nvidia-smi play the machine with the GPU.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import REPO_ROOT

# As in the Makefile: CMake and ninja may be in .venv alone.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
CMAKE = """
cmake_minimum_required(VERSION 3.25)
project(small LANGUAGES CXX)
set(PLX_TORCH ON)
set(PLX_TESTS ON)
include(cmake/packages.cmake)
enable_testing()
add_executable(small_bench small_bench.cc)
target_link_libraries(small_bench system::pcre2 system::utf8proc)
add_executable(small_test small_test.cc)
target_link_libraries(small_test system::gtest)
add_executable(broken EXCLUDE_FROM_ALL broken.cc)
add_test(NAME small.Passes COMMAND small_test)
add_test(NAME small.Slow COMMAND small_test)
add_test(NAME other.Fails COMMAND ${CMAKE_COMMAND} -E false)
add_test(NAME other.Hangs COMMAND sleep 60)
set_tests_properties(small.Passes small.Slow PROPERTIES LABELS unit)
set_tests_properties(small.Slow PROPERTIES LABELS "unit;slow")
set_tests_properties(other.Fails other.Hangs PROPERTIES LABELS bad)
"""
PRESETS = {
    "version": 6,
    "configurePresets": [
        {"name": "release", "generator": "Ninja", "binaryDir": "${sourceDir}/build/release"}
    ],
}
SOURCES = {
    "small_test.cc": "#include <gtest/gtest.h>\nTEST(Small, Passes) { EXPECT_TRUE(true); }\n",
    "broken.cc": "this does not compile\n",
    # --fail fails; --output is understood, and said to be.
    "small_bench.cc": """
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
int main(int count, char** words) {
  const char *output = nullptr, *commit = "";
  for (int i = 1; i < count; ++i) {
    if (!std::strcmp(words[i], "--help")) return std::puts("--output FILE --commit NAME") < 0;
    if (!std::strcmp(words[i], "--fail")) return 3;
    if (!std::strcmp(words[i], "--output")) output = words[i + 1];
    if (!std::strcmp(words[i], "--commit")) commit = words[i + 1];
  }
  char version[64];
  pcre2_config(PCRE2_CONFIG_VERSION, version);
  std::printf("PCRE2 %s, utf8proc %s, %s\\n", version, utf8proc_version(), std::getenv("SMALL"));
  std::FILE* file = std::fopen(output, "a");
  return std::fprintf(file, "{\\"commit\\": \\"%s\\"}\\n", commit) < 0;
}
""",
    "test_small.py": "def test_passes(): pass\ndef test_fails(): assert False\n",
}
TORCH = """
class cuda:
    device_count = staticmethod(lambda: 1)
    @staticmethod
    def get_device_properties(index):
        return cuda
    name, total_memory, major, minor, multi_processor_count = "Small GPU", 2**36, 9, 0, 132
class version:
    cuda = "13.0"
__version__ = "2.11.0+cu130"
"""


class Tree:
    """A small tree beside the programs of a machine with a GPU."""

    def __init__(self, folder):
        self.root = folder / "tree"
        for name in ("scripts/device", "cmake/packages.txt", "cmake/packages.cmake"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO_ROOT / name, self.root / name)
        ignore = shutil.ignore_patterns("__pycache__")
        tool = "scripts/device_tool"
        shutil.copytree(REPO_ROOT / tool, self.root / tool, ignore=ignore)
        presets = {"CMakePresets.json": json.dumps(PRESETS), "CMakeLists.txt": CMAKE}
        for name, text in (presets | SOURCES).items():
            (self.root / name).write_text(text)
        self.programs = folder / "programs"
        self.programs.mkdir()
        self.add_program("nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
        self.add_program("nvidia-smi", "echo 580.1")
        (folder / "python").mkdir()
        (folder / "python/torch.py").write_text(TORCH)
        self.environment = dict(os.environ) | {
            "PYTHONPATH": str(folder / "python"),
            "PATH": f"{self.programs}:{PATH}",
        }

    def add_program(self, name, line):
        (self.programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (self.programs / name).chmod(0o755)

    def command(self, *arguments):
        return [str(self.root / "scripts/device"), *map(str, arguments)]

    def device(self, *arguments, **environment):
        options = {"capture_output": True, "text": True, "check": False}
        variables = self.environment | environment
        return subprocess.run(self.command(*arguments), env=variables, **options)

    def run(self, output, *arguments, **environment):
        python = ("--python", sys.executable)
        return self.device("run", "--output", output, *python, *arguments, **environment)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def parts_of(folder):
    records = lines_of(folder / "run.jsonl")
    return {line["part"]: line for line in records if line["event"] == "part"}


def pack(tree):
    result = tree.device("pack")
    for reason in ("no dpkg here", "is not installed"):
        if reason in result.stderr:
            pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A small tree with a bundle. A test that changes it takes a copy of its own."""
    tree = Tree(tmp_path_factory.mktemp("device"))
    pack(tree)
    return tree


@pytest.fixture
def bare_tree(tmp_path):
    return Tree(tmp_path)


def test_the_bundle_has_the_listed_headers_and_libraries_and_replaces_bundles_only(tree, tmp_path):
    bundle = tree.root / "build/device-bundle"
    (bundle / "old").write_text("")
    result = pack(tree)
    assert result.stdout == f"{bundle}\n"
    assert sorted(path.name for path in bundle.iterdir()) == ["bundle.json", "include", "lib"]
    rows = [line.split() for line in (REPO_ROOT / "cmake/packages.txt").read_text().splitlines()]
    for row in (row for row in rows if row[0] != "#"):
        assert (bundle / "include" / row[3]).stat().st_size > 0
        for library in row[4:]:
            assert list((bundle / "lib").glob(f"lib{library}.*"))
    assert sum(path.stat().st_size for path in bundle.rglob("*")) < 16 * 2**20
    (tmp_path / "notes").write_text("kept")
    result = tree.device("pack", "--output", tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"device: {tmp_path} is not a bundle; it is left as it is\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def configure(folder, root, *arguments):
    """The whole project, whose headers and libraries are looked for below `root` alone."""
    only = (f"-DCMAKE_FIND_ROOT_PATH_MODE_{kind}=ONLY" for kind in ("INCLUDE", "LIBRARY"))
    own = (f"-DPLX_PYTHON={sys.executable}", "-DPLX_PYTHON_PACKAGE=OFF")
    where = ("--preset", "release", "-S", REPO_ROOT, "-B", folder)
    command = ["cmake", *where, *own, f"-DCMAKE_FIND_ROOT_PATH={root}", *only, *arguments]
    options = {"capture_output": True, "text": True, "check": False}
    return subprocess.run(list(map(str, command)), env=os.environ | {"PATH": PATH}, **options)


def test_the_bundle_alone_configures_the_project(tree, tmp_path):
    bundle = tree.root / "build/device-bundle"
    result = configure(tmp_path / "build", bundle, f"-DCMAKE_PREFIX_PATH={bundle}")
    assert result.returncode == 0, result.stderr
    cache = (tmp_path / "build/CMakeCache.txt").read_text().splitlines()
    places = [
        line.split("=")[1] for line in cache if re.match("PLX_(INCLUDE|LIBRARY)_.*PATH=", line)
    ]
    assert len(places) == 10
    assert all(place.startswith(str(bundle)) for place in places)


def test_without_the_packages_cmake_names_them_all(tmp_path):
    result = configure(tmp_path / "build", tmp_path / "empty")
    assert result.returncode != 0
    said = " ".join(result.stderr.split())
    assert "libcli11-dev nlohmann-json3-dev libtomlplusplus-dev libpcre2-dev" in said
    assert "Run scripts/setup" in said


def test_shared_libraries_go_in_under_the_name_that_programs_ask_for(bare_tree, tmp_path):
    shared = tmp_path / "usr/lib/libsmall.so"
    shared.parent.mkdir(parents=True)
    soname = ("-shared", "-x", "c", "-Wl,-soname,libsmall.so.3", "/dev/null")
    subprocess.run(["g++", *soname, "-o", shared], check=True)
    header = tmp_path / "usr/include/small/small.h"
    header.parent.mkdir(parents=True)
    header.write_text("")
    (bare_tree.root / "cmake/packages.txt").write_text("small X libsmall-dev small/small.h small\n")
    bare_tree.add_program("dpkg", f"echo {header}; echo {shared}; [ $2 = libsmall-dev ]")
    result = bare_tree.device("pack", "--output", tmp_path / "bundle")
    assert result.returncode == 0, result.stderr
    files = [path for path in (tmp_path / "bundle").rglob("*") if path.is_file()]
    names = sorted(str(path.relative_to(tmp_path / "bundle")) for path in files)
    wanted = ["include/small/small.h", "lib/libsmall.so", "lib/libsmall.so.3"]
    assert names == ["bundle.json", *wanted]
    bare_tree.add_program("dpkg", "exit 1")
    result = bare_tree.device("pack")
    assert result.returncode == 1
    wanted = "device: the package libsmall-dev is not installed; run scripts/setup\n"
    assert result.stderr == wanted


def test_a_run_builds_tests_and_times(tree, tmp_path):
    targets = ("--targets", "small_test", "small_bench")
    bench = ("--bench", "SMALL=variable small_bench", "--bench", "small_bench --commit own")
    result = tree.run(tmp_path, *targets, "--tests", "unit", *bench, "--commit", "abc")
    assert result.returncode == 0, result.stderr
    machine, *parts, end = lines_of(tmp_path / "run.jsonl")
    assert machine["event"] == "machine"
    assert (machine["commit"], machine["commit_from"]) == ("abc", "option")
    assert (machine["driver"], machine["nvcc"]) == ("580.1", "13.0.88")
    assert (machine["torch"], machine["devices"][0]["name"]) == ("2.11.0+cu130", "Small GPU")
    names = ["configure", "build", "tests unit", "bench small_bench", "bench small_bench-2"]
    assert [part["part"] for part in parts] == names
    assert {part["status"] for part in parts} == {"passed"}
    assert end["event"] == "end" and end["failed"] == []
    (test,) = lines_of(tmp_path / "tests.jsonl")  # a label leaves out what is slow
    assert (test["name"], test["status"]) == ("small.Passes", "passed")
    assert lines_of(tmp_path / "small_bench.jsonl") == [{"commit": "abc"}]
    assert lines_of(tmp_path / "small_bench-2.jsonl") == [{"commit": "own"}]
    log = (tmp_path / "run.log").read_text()
    assert ", variable\n" in log and "-DCMAKE_PREFIX_PATH=" in log
    heads = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert heads == ["part", *names]


def test_what_fails_is_reported_and_the_rest_runs(tree, tmp_path):
    (tmp_path / "small_bench.jsonl").write_text("an earlier run's")
    bundle = tree.root / "build/device-bundle/bundle.json"
    bundle.write_text(json.dumps(json.loads(bundle.read_text()) | {"commit": "packed"}))
    targets = ("--targets", "broken", "small_test", "small_bench")
    tests = ("--tests", "bad", "--tests", "-R small -LE slow", "--tests", "Absent")
    more = ("--pytest", "test_small.py", "--bench", "small_bench --fail", "--bench", "absent")
    limits = ("--tests-timeout", "1.5", "--bench", "small_bench", "--jobs", "1")
    result = tree.run(tmp_path, *targets, *tests, *more, *limits)
    assert result.returncode == 1
    parts = parts_of(tmp_path)
    failed = {name: part["status"] for name, part in parts.items() if part["status"] != "passed"}
    assert failed == {
        "build": "failed",
        "tests bad": "timeout",
        "tests Absent": "failed",
        "pytest test_small.py": "failed",
        "bench small_bench": "failed",
        "bench absent": "failed",
    }
    machine = lines_of(tmp_path / "run.jsonl")[0]
    assert (machine["commit"], machine["commit_from"]) == ("packed", "bundle")  # no git here
    assert list(parts)[-1] == "bench small_bench-2"
    assert parts["build"]["details"] == "failed: broken.cc.o"
    assert parts["tests bad"]["details"] == "1 failed; ended after 1.5 s"
    assert parts["tests -R small -LE slow"]["details"] == "1 passed"
    assert parts["bench absent"]["details"].endswith("nor a program in PATH: absent")
    tests = {line["name"]: line["status"] for line in lines_of(tmp_path / "tests.jsonl")}
    assert tests == {
        "other.Fails": "failed",
        "small.Passes": "passed",
        "test_small::test_passes": "passed",
        "test_small::test_fails": "failed",
    }
    assert not (tmp_path / "small_bench.jsonl").exists()
    assert "broken.cc:1:1: error: " in (tmp_path / "run.log").read_text()
    assert result.stderr.splitlines()[-1] == (
        f"device: did not pass: {', '.join(failed)}; the output is in {tmp_path / 'run.log'}"
    )


def test_a_benchmark_is_of_this_tree(tree, tmp_path):
    source = tree.root / "small_bench.cc"
    text = source.read_text()
    try:
        source.write_text(text.replace("utf8proc %s", "another %s"))
        arguments = ("--targets", "small_test", "--bench", "small_bench")
        result = tree.run(tmp_path, *arguments, SMALL="")
        assert result.returncode == 0, result.stderr
        assert ", another " in result.stderr
        source.write_text("this does not compile")
        assert tree.run(tmp_path, *arguments).returncode == 1
        assert parts_of(tmp_path)["bench small_bench"]["details"] == "small_bench does not build"
    finally:
        source.write_text(text)


def test_nothing_runs_after_cmake_has_failed(tree, tmp_path):
    build = ("--build-dir", tmp_path / "build", "-D", "CMAKE_CXX_COMPILER=absent")
    result = tree.run(tmp_path, *build)
    assert result.returncode == 1
    parts = parts_of(tmp_path)
    assert list(parts) == ["configure", "build", "tests quick"]
    assert parts["tests quick"]["status"] == "not run"
    assert parts["tests quick"]["details"] == "configure failed"


# A CTest that outlives its last case by a moment, as the real one does now and then.
SLOW_CTEST = """
trap 'echo "2/2 Test #2: other.Hangs ....***Exception: Interrupt  1.00 sec"; exit 8' INT
echo "1/2 Test #1: other.Fails ....***Failed  0.01 sec"
sleep 60 & wait
"""


def test_a_case_that_ends_with_its_part_is_no_result(tree, tmp_path):
    (tmp_path / "ctest").write_text(f"#!/bin/sh\n{SLOW_CTEST}")
    (tmp_path / "ctest").chmod(0o755)
    selection = ("--targets", "small_test", "--tests", "-R other", "--tests-timeout", "1.5")
    path = f"{tmp_path}:{tree.environment['PATH']}"
    tree.run(tmp_path, *selection, PATH=path)
    assert parts_of(tmp_path)["tests -R other"]["details"] == "1 failed; ended after 1.5 s"
    (test,) = lines_of(tmp_path / "tests.jsonl")
    assert (test["name"], test["status"]) == ("other.Fails", "failed")


def test_sigterm_ends_a_run_and_keeps_its_results(tree, tmp_path):
    tests = ("--targets", "small_test", "--tests", "Hangs", "--tests", "Passes")
    arguments = ("--output", tmp_path, "--python", sys.executable, *tests)
    process = subprocess.Popen(
        tree.command("run", *arguments), env=tree.environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not ((tmp_path / "run.log").exists() and "Start" in (tmp_path / "run.log").read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1] == "device: stopped"
    assert parts_of(tmp_path)["tests Hangs"]["status"] == "stopped"
    assert lines_of(tmp_path / "run.jsonl")[-1]["failed"] == ["tests Hangs", "tests Passes"]


def test_all_that_is_missing_is_said_at_once(bare_tree, tmp_path):
    (tmp_path / "python/torch.py").write_text(TORCH.replace('"13.0"', "None").replace(": 1", ": 0"))
    bare_tree.add_program("nvcc", "")
    (bare_tree.programs / "nvcc").chmod(0o644)
    for name in ("g++", "cmake", "ctest", "ninja"):
        bare_tree.add_program(name, "")
    for name in ("env", "bash", "dirname"):
        (bare_tree.programs / name).symlink_to(shutil.which(name))
    (bare_tree.programs / "python3").symlink_to(sys.executable)
    without_nvcc = {"PATH": str(bare_tree.programs), "CUDA_HOME": str(tmp_path), "CUDACXX": ""}
    result = bare_tree.run(tmp_path / "out", **without_nvcc)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "device: something is missing:"
    assert "torch 2.11.0+cu130 is a CPU build" in result.stderr
    assert lines[1].startswith("  nvcc: not in PATH")
    assert lines[3].startswith(f"  no bundle in {bare_tree.root}/build/device-bundle: run 'scripts")
    assert len(lines) == 4
    result = bare_tree.run(tmp_path / "out", "--python", "/absent/python", "--no-gpu")
    assert "torch: /absent/python says: " in result.stderr
    bundle = bare_tree.root / "build/device-bundle"
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").write_text('{"architecture": "other"}')
    result = bare_tree.run(tmp_path / "out", "--no-gpu")
    assert f"device-bundle is for other, and this machine is {os.uname().machine}" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "arguments are required: pack|run"),
        (("build",), "invalid choice: 'build'"),
        (("run", "--jobs", "0"), "argument --jobs: must be at least 1"),
        (("run", "--tests-timeout", "-1"), "--tests-timeout: must be more than 0 seconds"),
        (("run", "-D", "PLX_BENCH"), "argument -D: 'PLX_BENCH' is not NAME=VALUE"),
        (("run", "--bench", "A=b"), "argument --bench: 'A=b' names nothing to run"),
        (("run", "--tests", "-R 'a"), "argument --tests: '-R 'a': No closing quotation"),
        (("pack", "--targets", "x"), "unrecognized arguments: --targets x"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    command = [REPO_ROOT / "scripts/device", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
