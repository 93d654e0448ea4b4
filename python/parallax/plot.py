"""Curves from the metrics files of training runs.

    python -m parallax.plot --output loss.png softmax=runs/a/metrics.jsonl parallax=...
    python -m parallax.plot --y accuracy --output accuracy.png runs/*/metrics.jsonl

A metrics file has one JSON object per line (docs/training.md lists the fields). Needs matplotlib.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """What a figure shows: fields of the training and of the evaluation records, with labels."""

    train_field: str
    evaluation_field: str
    label: str
    title: str = ""
    log_y: bool = False


def read_metrics(path: Path, event: str) -> list[dict]:
    """The records of one event ("start", "train", "evaluation", "end") of a metrics file, in order.

    Raises ValueError that names the file and line of a record that is not JSON; a half-written last
    line, which an interrupted run can leave, is left out.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: not a JSON record: {error}") from error
    return [record for record in records if record.get("event") == event]


def plot_runs(runs: Mapping[str, Path], figure: Figure, output: Path) -> None:
    """Draws each run: training records as a thin line, validation records as points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(figsize=(7, 4.2), dpi=150)
    drawn = False
    for index, (name, path) in enumerate(runs.items()):
        color = f"C{index}"
        for event, field, style in (
            ("train", figure.train_field, {"linewidth": 1.0, "alpha": 0.6}),
            ("evaluation", figure.evaluation_field, {"marker": "o", "markersize": 4}),
        ):
            points = [r for r in read_metrics(path, event) if r.get(field) is not None]
            if points:
                steps = [r["step"] for r in points]
                values = [r[field] for r in points]
                axes.plot(steps, values, color=color, label=f"{name}, {event}", **style)
                drawn = True
    if not drawn:
        pyplot.close(canvas)
        fields = f"'{figure.train_field}' or '{figure.evaluation_field}'"
        raise ValueError(f"no record has {fields} in: {', '.join(map(str, runs.values()))}")
    axes.set_xlabel("step")
    axes.set_ylabel(figure.label)
    axes.set_title(figure.title)
    if figure.log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    canvas.tight_layout()
    canvas.savefig(output)
    pyplot.close(canvas)


def parse_runs(arguments: Sequence[str]) -> dict[str, Path]:
    runs = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator:
            name, path = Path(argument).parent.name, argument
        if not Path(path).is_file():
            raise ValueError(f"no metrics file at '{path}' (expected NAME=PATH or PATH)")
        runs[name] = Path(path)
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("runs", nargs="+", metavar="[NAME=]PATH", help="metrics.jsonl of a run")
    parser.add_argument("--y", default="loss", help="the field to draw (default: loss)")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--title", default="")
    parser.add_argument("--log-y", action="store_true", help="logarithmic y axis")
    options = parser.parse_args()
    try:
        evaluation_field = "validation_loss" if options.y == "loss" else options.y
        label = options.y.replace("_", " ")
        figure = Figure(options.y, evaluation_field, label, options.title, options.log_y)
        plot_runs(parse_runs(options.runs), figure, options.output)
    except (OSError, ValueError) as error:
        print(f"plot: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
