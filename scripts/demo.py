"""Trains the twins, softmax and Parallax attention, on two tasks and writes a report.

Both twins of a comparison have the same recipe but for the token mixer: the same seeds, the same
data in the same order, the same optimizer. On recall a third run starts the probe's norm at 1, not
at 0. The report says what was measured, whichever twin wins.
"""

import argparse
import contextlib
import ctypes
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parents[1]
PLX = ROOT / "build/release/apps/plx/plx"
sys.path.insert(0, str(ROOT / "python"))

from parallax.plot import Figure, plot_runs, read_metrics  # noqa: E402

TWINS = ("softmax", "parallax")
# Recall is also learnt with the probe's norm started at 1, as the published code does, not at 0.
RECALL_ARMS = (*TWINS, "parallax_gain1")


@dataclass
class Run:
    """One finished training run, and the records of its metrics file."""

    arm: str
    folder: Path
    records: dict[str, list[dict]]

    @classmethod
    def load(cls, arm: str, folder: Path) -> "Run":
        events = ("start", "train", "evaluation", "end")
        metrics = folder / "metrics.jsonl"
        return cls(arm, folder, {event: read_metrics(metrics, event) for event in events})

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def last(self, event: str, name: str) -> float | int | None:
        return next((r[name] for r in reversed(self.records[event]) if name in r), None)


class Stopped(KeyboardInterrupt):
    """A signal that ends the demo."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = signal.Signals(number)


def listen_to_signals() -> None:
    def stop(number, _frame):
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, stop)


def end_with_the_demo() -> None:
    """In plx, before it starts: SIGTERM, at which a run saves, when the demo is killed."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be closed
        print(f"\ndemo: {text}", file=sys.stderr, flush=True)


def plx(*arguments: str | Path, capture: bool = False) -> str:
    """Runs plx with its progress on this terminal; its errors end the demo.

    At a signal plx saves and stops: it is given the time to. Ctrl-C reaches it from the terminal.
    Of another signal it is told by SIGINT: it may have got that one too, and would end at once if
    it got two of a kind.
    """
    command = [str(PLX), *map(str, arguments)]
    stdout = subprocess.PIPE if capture else sys.stderr
    # Threads that wait spin for some 0.1 ms, then sleep. For longer, they would take turns with
    # whatever else the machine does; not at all, and every small op waits for threads to wake up.
    environment = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000"} | os.environ
    process = subprocess.Popen(
        command, stdout=stdout, text=True, cwd=ROOT, env=environment, preexec_fn=end_with_the_demo
    )
    stopped = None
    while True:
        try:
            written, _ = process.communicate()
            break
        except Stopped as signal_received:
            stopped = signal_received
            if stopped.number != signal.SIGINT:
                process.send_signal(signal.SIGINT)
    if stopped:
        raise stopped
    if process.returncode != 0:
        sys.exit(f"demo: '{' '.join(command)}' ended with status {process.returncode}")
    return written or ""


@contextlib.contextmanager
def plain_failure(path: Path) -> Iterator[None]:
    """What the system refuses while `path` is written ends the demo in one line."""
    try:
        yield
    except OSError as error:
        sys.exit(f"demo: cannot write {path}: {error.strerror or error}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives a temporary path that becomes `path`, on the disk, once it is whole."""
    temporary = path.with_name(f".{path.name}")
    with plain_failure(path):
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


class OwnRuns:
    """Which runs in the output folder are this demo's own, finished or not; others are kept.

    runs.json has a random name that is there before the first run starts. plx notes it in the start
    line of a run's metrics and in its checkpoints (logging.run), but not where anyone else started
    or continued the run.
    """

    # What a run that was killed before its start line may have left.
    SCRAPS = (".metrics.jsonl.", ".step_", ".removed-step_", ".latest")

    def __init__(self, output: Path):
        self.output, self.file = output, output / "runs.json"
        noted, *_ = *json_objects([text_of(self.file)]), {}
        self.name = name if isinstance(name := noted.get("run"), str) else None

    def is_own(self, folder: Path) -> bool:
        if not folder.is_dir():
            return not folder.exists()
        lines = json_objects(text_of(folder / "metrics.jsonl").splitlines())
        names = [line.get("run") for line in lines if line.get("event") == "start"]
        for checkpoint in folder.glob("step_*"):
            recipes = json_objects([text_of(checkpoint / "training/recipe.json")])
            sections = [recipe.get("logging") for recipe in recipes] or [None]
            names += [
                logging.get("run") if isinstance(logging, dict) else None for logging in sections
            ]
        if names:
            return self.name is not None and all(name == self.name for name in names)
        others = [path.name for path in folder.iterdir() if not path.name.startswith(self.SCRAPS)]
        return not lines and set(others) <= {"metrics.jsonl"}

    def claim(self, names: list[str]) -> None:
        """Ends the demo if one of its folders is not its own, else notes that they are."""
        taken = [self.output / name for name in names if not self.is_own(self.output / name)]
        if self.file.exists() and self.name is None:
            taken.append(self.file)
        if taken:
            sys.exit(
                f"demo: not left there by this demo, or continued since: "
                f"{', '.join(map(str, taken))}; move it away to keep it; to delete it: "
                f"rm -r {shlex.join(map(str, taken))}"
            )
        if self.name is None:
            self.name = f"demo-{uuid.uuid4().hex}"
            with writing(self.file) as path:
                path.write_text(json.dumps({"run": self.name}) + "\n")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def json_objects(texts: list[str]) -> list[dict]:
    """Those of the texts that are JSON objects; a kill or a power cut may have damaged others."""
    objects = []
    for text in texts:
        with contextlib.suppress(ValueError):
            objects.append(json.loads(text))
    return [value for value in objects if isinstance(value, dict)]


def recipe_of(task: str) -> dict:
    return tomllib.loads((ROOT / f"recipes/demo_{task}_base.toml").read_text())


def prepare_corpus(data: list[Path], output: Path) -> Path:
    """Prepares the text; too little of it ends the demo here, before the other runs."""
    corpus = output / "corpus"
    plx("prepare", "--output", corpus, *([path.resolve() for path in data] or ["--python-sources"]))
    needed = recipe_of("text")["data"]["context_length"] + 1
    splits = json.loads((corpus / "manifest.json").read_text())["splits"]
    for split, least in (("train", needed), ("validation", 2)):
        if splits[split]["tokens"] < least:
            sys.exit(
                f"demo: the text gives {splits[split]['tokens']} tokens for {split}, at least "
                f"{least} are needed; give more text"
            )
    return corpus


class Schedule:
    """All training runs of the demo, and how much time is left once one of them is done."""

    # Measured with the recipes of the demo; only their ratio counts.
    SECONDS_PER_TOKEN: ClassVar = {"recall": 1 / 36_000, "text": 1 / 32_000}

    def __init__(self, steps: int | None):
        self.waiting = []
        for task, arms in (("recall", RECALL_ARMS), ("text", TWINS)):
            recipe = recipe_of(task)
            tokens = recipe["train"]["batch_size"] * recipe["data"]["context_length"]
            cost = (steps or recipe["train"]["steps"]) * tokens * self.SECONDS_PER_TOKEN[task]
            self.waiting += [cost] * len(arms)
        self.count, self.done, self.started = len(self.waiting), 0.0, time.monotonic()

    def start(self) -> str:
        """Where the demo stands as the next run starts."""
        number = self.count - len(self.waiting) + 1
        if not self.done:
            return f"run {number} of {self.count}"
        left = (time.monotonic() - self.started) * sum(self.waiting) / self.done
        return f"run {number} of {self.count}, about {left:.0f} s left for all"

    def finish(self) -> None:
        self.done += self.waiting.pop(0)


def train(
    task: str, arms: tuple[str, ...], own: OwnRuns, schedule: Schedule, *arguments: str | Path
) -> list[Run]:
    runs, name = [], f"logging.run={own.name}"
    for arm in arms:
        folder = own.output / f"{task}_{arm}"
        say(f"{task}: training {arm} ({schedule.start()})")
        recipe = ROOT / f"recipes/demo_{task}_{arm}.toml"
        plx("train", recipe, "--output", folder, "--overwrite", "--set", name, *arguments)
        schedule.finish()
        runs.append(Run.load(arm, folder))
    return runs


def cell(value: float | int | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def table(runs: list[Run], rows: list[tuple[str, Callable[[Run], float | None], str]]) -> str:
    """Markdown with a column per run. A row is (label, value of a run, format)."""
    lines = [
        "| | " + " | ".join(run.arm for run in runs) + " |",
        "| --- |" + " ---: |" * len(runs),
    ]
    for label, value, style in rows:
        lines.append(f"| {label} | " + " | ".join(cell(value(r), style) for r in runs) + " |")
    return "\n".join(lines)


def tokens_per_second(run: Run) -> float:
    return run.last("end", "tokens") / run.last("end", "seconds")


SHARED_ROWS = [
    ("parameters", lambda run: run.last("start", "parameters"), ",d"),
    ("training tokens", lambda run: run.last("end", "tokens"), ",d"),
    ("tokens/s", tokens_per_second, ",.0f"),
    ("peak memory, MiB", lambda run: run.last("end", "peak_memory_bytes") / 2**20, ",.0f"),
    ("train loss, nats/token", lambda run: run.last("train", "loss"), ".4f"),
]
LEARNT = 0.99  # the accuracy that counts as having learnt to recall


def step_learnt(run: Run) -> int | None:
    evaluations = run.records["evaluation"]
    return next((r["step"] for r in evaluations if r.get("accuracy", 0) >= LEARNT), None)


RECALL_ROWS = [
    *SHARED_ROWS,
    (f"first evaluation with accuracy {LEARNT}, step", step_learnt, ",d"),
    ("validation loss, nats/recalled value", lambda run: run.last("end", "validation_loss"), ".4f"),
    ("validation accuracy", lambda run: run.last("end", "accuracy"), ".4f"),
]
TEXT_ROWS = [
    *SHARED_ROWS,
    ("validation loss, nats/token", lambda run: run.last("end", "validation_loss"), ".4f"),
    ("validation perplexity", lambda run: run.last("end", "validation_perplexity"), ".3f"),
    ("validation bits per byte", lambda run: run.last("end", "bits_per_byte"), ".4f"),
]


def accuracy_over_steps(runs: list[Run]) -> str:
    lines = ["| step | " + " | ".join(run.arm for run in runs) + " |"]
    lines.append("| ---: |" + " ---: |" * len(runs))
    for records in zip(*(run.records["evaluation"] for run in runs), strict=True):
        cells = " | ".join(cell(record.get("accuracy"), ".3f") for record in records)
        lines.append(f"| {records[0]['step']} | {cells} |")
    return "\n".join(lines)


def verdict(runs: list[Run], name: str, unit: str) -> str:
    softmax, parallax = (run.last("end", name) for run in runs[:2])
    difference = parallax - softmax
    return f"Parallax minus softmax at the last step: {difference:+.4f} {unit}."


def recall_verdict(runs: list[Run]) -> str:
    steps = [f"{run.arm} {step_learnt(run) or 'never'}" for run in runs]
    return (
        f"Accuracy {LEARNT} was first seen at step: {', '.join(steps)}. This is one seed, and the "
        "seed decides much: of eight (`bench/results/demo_seeds_2026-11-26.jsonl`) 1 got there by "
        "step 130 with softmax, 2 with parallax, 8 with parallax_gain1."
    )


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


@dataclass
class Sample:
    """What the Parallax model of the text wrote after a prompt."""

    prompt: str
    text: str


def report(recall: list[Run], text: list[Run], sample: Sample, data: str) -> str:
    fence = "````"
    return f"""# The twins: softmax attention and Parallax attention

{machine()}. Same recipe, seeds and data order for both twins of a comparison; only the token mixer
differs. `parallax` starts as softmax attention exactly (the gain of the probe's norm is 0),
`parallax_gain1` with a gain of 1. One seed: take small differences for noise.

## In-context recall

{table(recall, RECALL_ROWS)}

{recall_verdict(recall)}

Accuracy on held-out sequences over the steps:

{accuracy_over_steps(recall)}

![accuracy over steps](recall.png)

## Text

Byte-level language models of {data}.

{table(text, TEXT_ROWS)}

{verdict(text, "validation_loss", "nats/token (lower is better)")}

![loss over steps](loss.png)

## What the Parallax model writes after `{sample.prompt}`

{fence}
{sample.text.rstrip()}
{fence}
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="text files or folders (default: Python's standard library)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="train every twin for this many steps (default: as the recipes say)",
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs/demo", help="default: runs/demo"
    )
    parser.add_argument("--prompt", default="def ", help="what the sample starts with")
    options = parser.parse_args()
    for path in options.data:
        if not path.exists():
            sys.exit(f"demo: no file or folder at '{path}'; quote a name with spaces")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    return options


def run_demo(options: argparse.Namespace) -> None:
    started = time.monotonic()
    output = options.output.resolve()
    with plain_failure(output):
        output.mkdir(parents=True, exist_ok=True)

    own = OwnRuns(output)
    runs = [("recall", arm) for arm in RECALL_ARMS] + [("text", arm) for arm in TWINS]
    own.claim([f"{task}_{arm}" for task, arm in runs])

    say("preparing the text")
    corpus = prepare_corpus(options.data, output)
    steps = ["--set", f"train.steps={options.steps}"] if options.steps else []
    schedule = Schedule(options.steps)
    recall = train("recall", RECALL_ARMS, own, schedule, *steps)
    text = train("text", TWINS, own, schedule, "--data", corpus, *steps)

    say("generating a sample")
    checkpoint = text[-1].folder / "latest"
    arguments = ("--prompt", options.prompt, "--max-tokens", "400", "--temperature", "0.7")
    written = plx("generate", checkpoint, *arguments, "--seed", "1", capture=True)
    sample = Sample(options.prompt, written)

    accuracy = Figure("accuracy", "accuracy", "accuracy", "In-context recall")
    with writing(output / "recall.png") as path:
        plot_runs({run.arm: run.metrics for run in recall}, accuracy, path)
    loss = Figure("loss", "validation_loss", "loss, nats per token", "Text")
    with writing(output / "loss.png") as path:
        plot_runs({run.arm: run.metrics for run in text}, loss, path)
    names = ", ".join(f"`{path}`" for path in options.data)
    data = names or "the Python standard library's source files"
    with writing(output / "report.md") as path:
        path.write_text(report(recall, text, sample, data), encoding="utf-8")
    say(f"wrote {output / 'report.md'} in {time.monotonic() - started:.0f} s")
    print(output / "report.md")


if __name__ == "__main__":
    try:
        listen_to_signals()
        run_demo(parse_arguments())
    except Stopped as stopped:
        name = "Ctrl-C" if stopped.number == signal.SIGINT else stopped.number.name
        say(f"stopped by {name}; what was trained until then is kept, the next demo starts anew")
        sys.exit(128 + stopped.number)
    except OSError as error:
        sys.exit(f"demo: {error}")
