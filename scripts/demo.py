"""Trains the twins, softmax and Parallax attention, on two tasks and writes a report.

Both twins of a comparison have the same recipe but for the token mixer: the same seeds, the same
data in the same order, the same optimizer. The report says what was measured, whichever twin wins.
"""

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLX = ROOT / "build/release/apps/plx/plx"
sys.path.insert(0, str(ROOT / "python"))

from parallax.plot import Figure, plot_runs, read_metrics  # noqa: E402

TWINS = ("softmax", "parallax")


@dataclass
class Run:
    """One finished training run."""

    mixer: str
    folder: Path
    train: list[dict] = field(default_factory=list)
    validation: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def load(self) -> "Run":
        self.train = read_metrics(self.metrics, "train")
        self.validation = read_metrics(self.metrics, "validation")
        self.summary = (read_metrics(self.metrics, "summary") or [{}])[-1]
        return self


def say(text: str) -> None:
    print(f"\ndemo: {text}", file=sys.stderr, flush=True)


def plx(*arguments: str | Path, capture: bool = False) -> str:
    """Runs plx with its progress on this terminal; its errors end the demo."""
    command = [str(PLX), *map(str, arguments)]
    stdout = subprocess.PIPE if capture else sys.stderr
    done = subprocess.run(command, stdout=stdout, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"demo: '{' '.join(command)}' ended with status {done.returncode}")
    return done.stdout or ""


def prepare_corpus(data: str | None, output: Path) -> Path:
    corpus = output / "corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    source = ["--python-sources"] if data is None else [Path(data).resolve()]
    plx("prepare", "--output", corpus, *source)
    return corpus


def train_twins(task: str, output: Path, overrides: list[str]) -> list[Run]:
    runs = []
    for mixer in TWINS:
        folder = output / f"{task}_{mixer}"
        shutil.rmtree(folder, ignore_errors=True)
        say(f"{task}: training the {mixer} twin")
        settings = [argument for override in overrides for argument in ("--set", override)]
        plx("train", ROOT / f"recipes/demo_{task}_{mixer}.toml", "--output", folder, *settings)
        runs.append(Run(mixer, folder).load())
    return runs


def cell(value: float | int | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def table(runs: list[Run], rows: list[tuple[str, str, str, str]]) -> str:
    """Markdown, a column per twin. A row is (label, source, field, format)."""
    lines = [
        "| | " + " | ".join(run.mixer for run in runs) + " |",
        "| --- |" + " ---: |" * len(runs),
    ]
    for label, source, name, style in rows:
        values = []
        for run in runs:
            records = {"train": run.train, "validation": run.validation, "summary": [run.summary]}
            last = next((r[name] for r in reversed(records[source]) if name in r), None)
            values.append(cell(last, style))
        lines.append(f"| {label} | " + " | ".join(values) + " |")
    return "\n".join(lines)


SHARED_ROWS = [
    ("parameters", "summary", "parameters", ",d"),
    ("training tokens", "train", "tokens", ",d"),
    ("tokens/s", "summary", "tokens_per_second", ",.0f"),
    ("peak memory, MiB", "summary", "peak_memory_mib", ",.0f"),
    ("train loss, nats/token", "train", "loss", ".4f"),
    ("validation loss, nats/token", "validation", "loss", ".4f"),
]
RECALL_ROWS = [*SHARED_ROWS, ("validation accuracy", "validation", "accuracy", ".4f")]
TEXT_ROWS = [
    *SHARED_ROWS,
    ("validation perplexity per token", "validation", "perplexity", ".3f"),
    ("validation bits per byte", "validation", "bits_per_byte", ".4f"),
]


def accuracy_over_steps(runs: list[Run]) -> str:
    steps = [record["step"] for record in runs[0].validation]
    lines = ["| step | " + " | ".join(run.mixer for run in runs) + " |"]
    lines.append("| ---: |" + " ---: |" * len(runs))
    for index, step in enumerate(steps):
        values = [run.validation[index].get("accuracy") for run in runs]
        lines.append(f"| {step} | " + " | ".join(cell(value, ".3f") for value in values) + " |")
    return "\n".join(lines)


def verdict(runs: list[Run], name: str, unit: str) -> str:
    softmax, parallax = (run.validation[-1][name] for run in runs)
    difference = parallax - softmax
    return f"Parallax minus softmax at the last step: {difference:+.4f} {unit}."


def machine() -> str:
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    date = datetime.date.today().isoformat()
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores; commit {commit or 'unknown'}; {date}"


def report(recall: list[Run], text: list[Run], sample: str, data: str) -> str:
    fence = "````"
    return f"""# The twins: softmax attention and Parallax attention

{machine()}. Same recipe, seeds and data order for both twins of a comparison; only the token mixer
differs. One seed: take small differences for noise.

## In-context recall

{table(recall, RECALL_ROWS)}

{verdict(recall, "accuracy", "accuracy")}

Accuracy on held-out sequences over the steps:

{accuracy_over_steps(recall)}

![accuracy over steps](recall.png)

## Text

Byte-level language models of {data}.

{table(text, TEXT_ROWS)}

{verdict(text, "loss", "nats/token (lower is better)")}

![loss over steps](loss.png)

## A sample from the Parallax model

{fence}
{sample.rstrip()}
{fence}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", help="text file or folder (default: Python's standard library)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs/demo", help="default: runs/demo"
    )
    parser.add_argument("--prompt", default="def ", help="what the sample starts with")
    options = parser.parse_args()
    if options.data is not None and not Path(options.data).exists():
        sys.exit(f"demo: no file or folder at '{options.data}'")
    started = time.monotonic()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)

    say("preparing the text")
    corpus = prepare_corpus(options.data, output)
    recall = train_twins("recall", output, [])
    text = train_twins("text", output, [f"data.path={corpus}"])

    say("generating a sample")
    checkpoint = text[-1].folder / "latest"
    arguments = ("--prompt", options.prompt, "--max-tokens", "400", "--temperature", "0.7")
    sample = plx("generate", checkpoint, *arguments, "--seed", "1", capture=True)

    accuracy = Figure("accuracy", "accuracy", "In-context recall")
    plot_runs({run.mixer: run.metrics for run in recall}, accuracy, output / "recall.png")
    loss = Figure("loss", "loss, nats per token", "Text")
    plot_runs({run.mixer: run.metrics for run in text}, loss, output / "loss.png")
    data = f"`{options.data}`" if options.data else "the Python standard library's source files"
    path = output / "report.md"
    path.write_text(report(recall, text, sample, data), encoding="utf-8")
    say(f"wrote {path} in {time.monotonic() - started:.0f} s")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
