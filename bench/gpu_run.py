# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks for GPUs say about a run, and the file that they write."""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch


def nvidia_smi(field: str, index: int) -> str:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", f"--id={index}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def open_device(program: str, name: str) -> torch.device | None:
    """The device that --device names, made the current one; None, and a line, without CUDA."""
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        print(f"{program}: no CUDA device (--device cpu --small tries the program)",
              file=sys.stderr)  # fmt: skip
        return None
    device = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(device)
    return device


def describe_run(options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """What every line of a result file says about where it comes from."""
    about: dict[str, object] = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": options.commit,
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "device": properties.name,
            "num_multiprocessors": properties.multi_processor_count,
            "driver": nvidia_smi("driver_version", device.index),
            "power_limit": nvidia_smi("power.limit", device.index),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    if options.small:
        about["small"] = True
    if os.environ.get("PLX_BACKEND"):
        about["forced_backend"] = os.environ["PLX_BACKEND"]
    return about


def one_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text}"[:200] if isinstance(error, Exception) else text[:200]


def append(path: Path | None, row: dict[str, object]) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
