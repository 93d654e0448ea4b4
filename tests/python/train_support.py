# SPDX-License-Identifier: Apache-2.0
"""What the tests of `plx train` share: a recipe of a few milliseconds per step, and its runs."""

import json
import os
import subprocess
import time
from pathlib import Path

from safetensors.torch import load_file
from support import build_path

RECIPE = """
[model]
vocab_size = 16
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
max_position_embeddings = 64
mixers = ["parallax"]
[data]
kind = "in_context_recall"
context_length = 16
[optimizer]
lr = 0.02
[train]
steps = 100000
batch_size = 4
device = "cpu"
[evaluation]
num_sequences = 4
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


class Run:
    """A recipe and an output folder, and the program over them."""

    def __init__(self, folder: Path):
        self.recipe = folder / "recipe.toml"
        self.output = folder / "output"
        self.recipe.write_text(RECIPE)

    def command(self, *arguments):
        program = build_path("apps/plx/plx")
        return [program, "train", self.recipe, "--output", self.output, *arguments]

    def finish(self, *arguments, **options):
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=120,
            **options,
        )

    def start(self, *arguments, **options):
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            **options,
        )

    def lines(self, event):
        text = (self.output / "metrics.jsonl").read_text()
        return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]

    def wait_for_step(self, step, process):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            try:
                if any(line["step"] >= step for line in self.lines("train")):
                    return
            except (FileNotFoundError, json.JSONDecodeError):
                pass  # not there yet, or a line half written
            time.sleep(0.02)
        raise AssertionError("the run did not get going")

    def checkpoints(self):
        return sorted(self.output.glob("step_*"))


def check_whole(checkpoint):
    """Every file of a checkpoint is there and readable."""
    weights = load_file(checkpoint / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    momentum = load_file(checkpoint / "training" / "optimizer.safetensors")
    assert any(name.endswith(".momentum") for name in momentum)
    state = json.loads((checkpoint / "training" / "state.json").read_text())
    assert checkpoint.name == f"step_{state['step']:08d}"
    json.loads((checkpoint / "config.json").read_text())
