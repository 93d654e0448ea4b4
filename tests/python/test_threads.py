# SPDX-License-Identifier: Apache-2.0
"""How many of Torch's threads the ops take: each case in a process of its own."""

import os
import subprocess
import sys

import pytest
from support import REPO_ROOT


def attention_in_a_new_process(num_torch_threads, **environment):
    """The run, which prints how many threads a call of attention has started."""
    script = f"""
import os, torch, parallax
def count(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads({num_torch_threads})
x = torch.ones(1, 256, 4, 32)
before = count()
parallax.attention(x, x, x, x)
print(count() - before)
"""
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT / "python"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("num_torch_threads", "limit", "started"),
    [(2, "", 1), (2, "1", 0), (2, "2", 1), (2, "8", 1), (1, "8", 0)],
    ids=str,
)
def test_the_ops_take_the_fewer_of_torchs_threads_and_plx_num_threads(
    num_torch_threads, limit, started
):
    run = attention_in_a_new_process(num_torch_threads, PLX_NUM_THREADS=limit)
    assert run.stdout == f"{started}\n", run.stderr


@pytest.mark.parametrize("limit", ["0", "two"])
def test_a_bad_plx_num_threads_is_refused(limit):
    run = attention_in_a_new_process(2, PLX_NUM_THREADS=limit)
    message = f"RuntimeError: PLX_NUM_THREADS is '{limit}'; it must be a number from 1 to 4096"
    assert message in run.stderr
