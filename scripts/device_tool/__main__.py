# SPDX-License-Identifier: Apache-2.0
"""The command line of scripts/device."""

import argparse
import os
import re
import shlex
import signal
import sys
from pathlib import Path

from bundle import ROOT, DeviceError, pack
from kinds import VARIABLE
from run import run

BUILD = ROOT / "build/device"
BUNDLE = ROOT / "build/device-bundle"
# Each value is one part of the run.
REPEATED = {
    "--tests": (
        "WHICH",
        "CTest cases: 'quick' (all without label slow), a label (without slow), a regular "
        "expression of names, or options of ctest",
    ),
    "--pytest": (
        "ARGUMENTS",
        "run pytest with these arguments; the op library is then built into python/parallax/_lib, "
        "where Python loads it",
    ),
    "--bench": (
        "COMMAND",
        "run a program, built first if need be; --output FOLDER/PROGRAM.jsonl and --commit are "
        "added if its --help has them, NAME=value in front sets a variable",
    ),
}
LIMITS = {
    "configure": (300, "CMake"),
    "build": (1800, "the build"),
    "tests": (900, "each --tests"),
    "test": (300, "one CTest case"),
    "pytest": (900, "each --pytest"),
    "bench": (600, "each --bench"),
}

ABOUT = """\
Builds, tests and times this tree on a machine that has a GPU, nvcc, CMake, ninja, g++ and a Python
with torch, but no network and none of the packages that scripts/setup installs.

  scripts/device pack      here: puts those packages' headers and libraries in build/device-bundle
  scripts/device run       there, in a copy of the tree with that folder: builds, tests, times
"""
PACK = """\
Copies the headers and libraries of the packages in cmake/packages.txt, a few MiB, into one folder
and prints its path.
"""
PACK_EXAMPLES = """\
examples:

  scripts/device pack
  rsync -a --exclude build --exclude .venv --exclude runs ./ gpu:parallax/
  rsync -a --mkpath build/device-bundle gpu:parallax/build/

Git ignores build/, so a clone has to be given the folder too. The other machine may be another
distribution for the same processors, with a C library that is not older than this one's.
"""
RUN = """\
Configures, builds, tests and times the tree with the bundle, in parts: CMake, the build, and each
--tests, --pytest and --bench. With none of these and no --targets, everything is built and the
quick tests run. When a part fails the later ones still run, and the exit status is 1.
"""
RUN_EXAMPLES = """\
examples:

  scripts/device run
  scripts/device run --targets conformance_test --tests conformance
  scripts/device run --targets attention_bench --bench 'attention_bench --threads 2 --calls decode'
  scripts/device run --tests 'cuda\\..*Decode' --tests '-L unit -LE slow -j 1' --output results
  scripts/device run --targets plx_torch --pytest 'tests/python/test_decode.py -k paged'
  scripts/device run --no-gpu --tests quick       # a trial on a machine without GPU and nvcc

In the output folder: run.jsonl has the machine, then a line for each part, as it ends; tests.jsonl
a line for each test, as it ends; PROGRAM.jsonl what a benchmark wrote; run.log what all of them
printed. Progress goes to stderr, and the table at the end to stdout.
"""


def seconds(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def definition(text: str) -> str:
    if "=" not in text[1:]:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return text


def command_line(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}': {error}") from None
    if all(re.match(VARIABLE, word) for word in words):
        raise argparse.ArgumentTypeError(f"'{text}' names nothing to run")
    return text


def add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--targets", nargs="+", metavar="TARGET", help="build these; default: everything")
    for option, (metavar, text) in REPEATED.items():
        text += "; may be repeated"
        add(option, action="append", type=command_line, default=[], metavar=metavar, help=text)
    add("--output", type=Path, metavar="FOLDER", help="default: runs/device/DATE_TIME")
    add("--build-dir", type=Path, default=BUILD, metavar="FOLDER", help="default: build/device")
    text = "what 'pack' made; default: build/device-bundle"
    add("--bundle", type=Path, default=BUNDLE, metavar="FOLDER", help=text)
    text = "one with torch; default: .venv/bin/python, else python3"
    add("--python", metavar="PROGRAM", help=text)
    text = "a CMake variable; may be repeated"
    add("-D", dest="define", action="append", type=definition, default=[], metavar="X=Y", help=text)
    text = "what the results call this tree; default: git's answer, else the bundle's"
    add("--commit", help=text)
    add("--no-gpu", action="store_true", help="do not ask for nvcc and a GPU")
    text = "compilers and CTest cases at a time; default: one for each core"
    cores = len(os.sched_getaffinity(0))
    add("--jobs", type=positive, default=cores, metavar="N", help=text)
    add = parser.add_argument_group("limits, in seconds; what reaches one is ended").add_argument
    for name, (limit, what) in LIMITS.items():
        text = f"{what}; default: {limit}"
        add(f"--{name}-timeout", type=seconds, default=limit, metavar="S", help=text)


def parse_arguments() -> argparse.Namespace:
    shape = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(prog="scripts/device", description=ABOUT, **shape)
    commands = parser.add_subparsers(dest="command", required=True, metavar="pack|run")
    text = "make the bundle, on a machine with the packages"
    packer = commands.add_parser("pack", help=text, description=PACK, epilog=PACK_EXAMPLES, **shape)
    text = "replaced if it is a bundle; default: build/device-bundle"
    packer.add_argument("--output", type=Path, default=BUNDLE, metavar="FOLDER", help=text)
    text = "build, test and time, on the machine with the GPU"
    runner = commands.add_parser("run", help=text, description=RUN, epilog=RUN_EXAMPLES, **shape)
    add_run_options(runner)
    return parser.parse_args()


def stop(number, _frame):
    raise KeyboardInterrupt(number)


def main() -> int:
    options = parse_arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, stop)
    for name in ("bundle", "build_dir", "output"):
        if getattr(options, name, None) is not None:
            setattr(options, name, getattr(options, name).absolute())
    try:
        if options.command == "run":
            return run(options)
        print(pack(options.output))
        return 0
    except (DeviceError, OSError) as error:
        print(f"device: {error}", file=sys.stderr)
    except KeyboardInterrupt as stopped:
        print("device: stopped", file=sys.stderr)
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
    return 1


if __name__ == "__main__":
    sys.exit(main())
