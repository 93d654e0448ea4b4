# SPDX-License-Identifier: Apache-2.0
"""What the machine has: the record for the results, and what is missing for a run."""

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from bundle import ROOT, distribution

ASK_TORCH = """
import json, torch
cuda = torch.cuda
devices = [cuda.get_device_properties(i) for i in range(cuda.device_count())]
print(json.dumps({
    "torch": torch.__version__,
    "torch_cuda": torch.version.cuda,
    "devices": [{
        "name": d.name,
        "memory_gib": round(d.total_memory / 2**30, 1),
        "compute_capability": f"{d.major}.{d.minor}",
        "multiprocessors": d.multi_processor_count,
    } for d in devices],
}))
"""


def answer(*command: str) -> tuple[str | None, str]:
    """(what a program wrote, or None if it failed; the last line of its complaint)."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    complaint = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1]
    return (result.stdout if result.returncode == 0 else None), complaint


def find_nvcc() -> str | None:
    """As CMake looks for it: CUDACXX, PATH; then where toolkits are installed."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    candidates = (os.environ.get("CUDACXX", ""), "nvcc", f"{home}/bin/nvcc")
    return next((path for path in map(shutil.which, filter(None, candidates)) if path), None)


def find_python(asked: str | None) -> str:
    own = ROOT / ".venv/bin/python"
    if asked:
        return shutil.which(asked) or asked
    return str(own) if own.exists() else shutil.which("python3") or "python3"


def first_match(pattern: str, text: str | None) -> str | None:
    match = re.search(pattern, text or "", re.MULTILINE)
    return match[1].strip() if match else None


def read_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def tool_version(program: str) -> str | None:
    return first_match(r"(\d+\.\d+[\d.]*)", answer(program, "--version")[0])


def extend_path(nvcc: str | None) -> None:
    """For all that is started from here: the tree's own programs first, as the Makefile does."""
    folders = [str(ROOT / ".venv/bin")] if (ROOT / ".venv/bin").exists() else []
    folders.append(os.environ.get("PATH", os.defpath))
    if nvcc:
        os.environ["CUDACXX"] = nvcc
        folders.append(str(Path(nvcc).parent))
    os.environ["PATH"] = os.pathsep.join(folders)


class Machine:
    """This machine: `record` for the results, and `missing`, what a run needs and is not there."""

    def __init__(self, python: str | None, *, gpu: bool, pytest: bool):
        self.python = find_python(python)
        self.nvcc = find_nvcc()
        extend_path(self.nvcc)
        self.record: dict = {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "driver": None,
            "nvcc": None,
            "torch": None,
            "torch_cuda": None,
            "devices": [],
            "cpu": first_match(r"^model name\s*:(.*)", read_file("/proc/cpuinfo")),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
            "system": distribution(),
            "kernel": platform.release(),
            "glibc": platform.libc_ver()[1],
            "compiler": tool_version("g++"),
            "cmake": tool_version("cmake"),
            "python": platform.python_version(),
        }
        self.missing: list[str] = []
        for program in ("g++", "cmake", "ctest", "ninja"):
            if not shutil.which(program):
                self.missing.append(f"{program}: not in PATH")
        self._ask_torch()
        self._ask_cuda(required=gpu)
        if pytest and answer(self.python, "-c", "import pytest")[0] is None:
            self.missing.append(f"pytest: {self.python} cannot import it")

    def _ask_torch(self) -> None:
        facts, complaint = answer(self.python, "-c", ASK_TORCH)
        if facts is None:
            self.missing.append(f"torch: {self.python} says: {complaint} (--python names another)")
        else:
            self.record |= json.loads(facts.splitlines()[-1])

    def _ask_cuda(self, *, required: bool) -> None:
        query = ("--query-gpu=driver_version", "--format=csv,noheader")
        self.record["driver"] = first_match(r"(\S+)", answer("nvidia-smi", *query)[0])
        if self.nvcc:
            release = answer(self.nvcc, "--version")[0]
            self.record["nvcc"] = first_match(r"release [\d.]+, V([\d.]+)", release)
        elif required:
            self.missing.append("nvcc: not in PATH, CUDACXX or CUDA_HOME (--no-gpu does without)")
        if required and self.record["torch"] and not self.record["devices"]:
            kind = "is a CPU build" if not self.record["torch_cuda"] else "sees none"
            reason = f"torch {self.record['torch']} {kind}"
            self.missing.append(f"a GPU: {reason} (--no-gpu does without)")
