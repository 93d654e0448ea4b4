# SPDX-License-Identifier: Apache-2.0
"""What train_gpu.py measures: the cases, and runs of `plx train` that it reads the numbers of."""

import json
import os
import shutil
import string
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from safetensors.torch import load_file

REPO_ROOT = Path(__file__).resolve().parents[1]
MIXERS = ("softmax", "parallax")
END_OF_DOCUMENT = 256  # of the byte tokenizer


@dataclass(frozen=True)
class Case:
    """A pair of twins of recipes/ at one context; tokens of a step and of a forward pass."""

    name: str
    recipe: str  # with @ for the mixer
    context: int
    step_tokens: int
    micro_tokens: int

    def recipe_of(self, mixer: str) -> Path:
        return REPO_ROOT / "recipes" / f"{self.recipe.replace('@', mixer)}.toml"

    @property
    def batch_size(self) -> int:
        return self.step_tokens // self.context


# A forward pass of 0.6B has half the tokens: the peer's logits, 151,936 per token, must fit.
CASES = [
    Case(f"{name}_{context}", recipe, context, 65536, micro_tokens)
    for name, recipe, micro_tokens in (
        ("124m", "python_124m_@", 32768),
        ("0p6b", "qwen3_0p6b_@_muon", 16384),
    )
    for context in (2048, 4096)
]
SMALL_CASES = [Case("small_64", "demo_text_@", 64, 512, 256)]


class RunError(Exception):
    """A program that failed, with its last words."""


def find_plx(given: Path | None) -> Path:
    """--plx, else the build's, else that of PATH."""
    build = Path(os.environ.get("PLX_BUILD_DIR", REPO_ROOT / "build/release"))
    found = given or build / "apps/plx/plx"
    if not found.is_file():
        on_path = None if given else shutil.which("plx")
        if on_path is None:
            raise RunError(f"no program {found}: build the target plx, or name one with --plx")
        found = Path(on_path)
    return found


@dataclass
class Plx:
    """How `plx train` is called here."""

    program: Path
    device: str
    compute: str
    folder: Path  # for what is written
    data: Path | None = None

    def call(self, *arguments: object) -> None:
        command = [str(self.program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO_ROOT)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if "warning:" not in line]
            last = said[-1] if said else f"status {done.returncode}"
            raise RunError(f"plx {arguments[0]}: {last}"[:400])

    @contextmanager
    def train(self, case: Case, mixer: str, data: Path, settings: dict) -> Iterator[Path]:
        """The output folder of a run, which is deleted afterwards: checkpoints are large."""
        output = self.folder / f"{case.name}_{mixer}"
        common = {
            "data.context_length": case.context,
            "train.device": self.device,
            "train.compute": self.compute,
            "train.activation_checkpointing": "false",
            "optimizer.newton_schulz_dtype": "bfloat16",  # as PyTorch's Muon has it
            "schedule.kind": "constant",
            "schedule.warmup_steps": 0,
            "evaluation.num_sequences": 0,
            "logging.every_steps": 1,
        }
        try:
            words = [f"--set={name}={value}" for name, value in (common | settings).items()]
            self.call("train", case.recipe_of(mixer), "-o", output, "--data", data, "-q", *words)
            yield output
        finally:
            shutil.rmtree(output, ignore_errors=True)

    def prepare(self, name: str, text: str) -> Path:
        """Tokens of a text, one per byte, all of it to train on."""
        source, tokens = self.folder / f"{name}.txt", self.folder / name
        source.write_text(text, encoding="ascii")
        self.call("prepare", "-o", tokens, "--validation-fraction", 0, source)
        return tokens


def random_text(num_bytes: int) -> str:
    return "".join(Random(1).choices(string.printable, k=num_bytes))


@dataclass
class Check:
    """One window, a model, and the loss and gradient that plx has of both."""

    tokens: list[int]  # context + 1
    config: dict
    recipe: dict
    tensors: dict
    loss: float
    gradient_norm: float


def run_check(plx: Plx, case: Case, num_steps: int = 1, lr: float = 0.0) -> Check:
    """Steps of softmax attention, by default one that changes nothing: a learning rate of 0.

    The data is one window long, so that it is known what was trained on. The weights are three
    times as large as usual: near zero every model of the vocabulary has the same loss. The tensors
    are those after the steps, loss and gradient norm those of the last.
    """
    text = random_text(case.context)  # and the end of the document
    data = plx.prepare(f"window_{case.context}", text)
    settings = {
        "train.steps": num_steps,
        "train.batch_size": 1,
        "train.micro_batch_size": 0,
        "optimizer.lr": lr,
        "model.initializer_range": 0.06,
    }
    with plx.train(case, "softmax", data, settings) as output:
        step = read_steps(output)[-1]
        folder = output / "latest"
        return Check(
            tokens=[*text.encode("ascii"), END_OF_DOCUMENT],
            config=json.loads((folder / "config.json").read_text()),
            recipe=json.loads((folder / "training/recipe.json").read_text()),
            tensors=load_file(folder / "model.safetensors"),
            loss=step["loss"],
            gradient_norm=step["grad_norm"],
        )


def run_timed(plx: Plx, case: Case, mixer: str, num_steps: int) -> tuple[dict, list[dict]]:
    """The start line of a run's metrics, and a record of each step."""
    data = plx.data or plx.prepare("random", random_text(4 * case.step_tokens))
    settings = {
        "train.steps": num_steps,
        "train.batch_size": case.batch_size,
        "train.micro_batch_size": case.micro_tokens // case.context,
    }
    with plx.train(case, mixer, data, settings) as output:
        return read_records(output, "start")[0], read_steps(output)


def read_records(output: Path, event: str) -> list[dict]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def read_steps(output: Path) -> list[dict]:
    return read_records(output, "train")
