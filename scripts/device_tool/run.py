# SPDX-License-Identifier: Apache-2.0
"""scripts/device run: plans the parts, runs one after the other and says what became of them."""

import datetime
import os
import time
from argparse import Namespace

from bundle import ROOT, DeviceError, git_commit, read_bundle, say
from kinds import Bench, Build, Configure, Pytest, Tests
from machine import Machine
from parts import Job, Part, Results


def plan(job: Job) -> list[Part]:
    options = job.options
    asked = options.targets or options.tests or options.pytest or options.bench
    parts: list[Part] = [Configure(job), Build(job)]
    parts += [Tests(job, which) for which in (options.tests if asked else ["quick"])]
    parts += [Pytest(job, arguments) for arguments in options.pytest]
    return parts + [Bench(job, command) for command in options.bench]


def table(parts: list[Part]) -> str:
    rows = [("part", "status", "seconds", "details")]
    rows += [(p.name, p.status, f"{p.seconds:.1f}", p.details) for p in parts]
    name, status, seconds = (max(len(row[i]) for row in rows) for i in range(3))
    lines = (f"{a:<{name}}  {b:<{status}}  {c:>{seconds}}  {d}" for a, b, c, d in rows)
    return "\n".join(line.rstrip() for line in lines)


def start(options: Namespace) -> Job:
    """Looks for all that is needed, and writes the first line of the results."""
    machine = Machine(options.python, gpu=not options.no_gpu, pytest=bool(options.pytest))
    bundle = {}
    try:
        bundle = read_bundle(options.bundle)
    except DeviceError as error:
        machine.missing.append(str(error))
    if machine.missing:
        raise DeviceError("\n  ".join(("something is missing:", *machine.missing)))
    sources = {"option": options.commit, "git": git_commit(), "bundle": bundle["commit"]}
    source = next((source for source, commit in sources.items() if commit), None)
    commit = sources[source] if source else "unknown"
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    results = Results(options.output or ROOT / "runs/device" / now)
    known = {"commit": commit, "commit_from": source, "packed_on": bundle["system"]}
    results.write("run.jsonl", {"event": "machine"} | known | machine.record)
    devices = ", ".join(device["name"] for device in machine.record["devices"]) or "no GPU"
    say(f"{devices}; torch {machine.record['torch']}; commit {commit}; {results.folder}")
    return Job(options, machine.python, commit, dict(os.environ), results)


def run(options: Namespace) -> int:
    """The exit status; a KeyboardInterrupt goes on to the caller once the results are written."""
    started = time.monotonic()
    job = start(options)
    parts = plan(job)
    try:
        for part in parts:
            if parts[0].status in ("not run", "passed"):
                part.run()
            else:
                part.details = "configure failed"
                part.write()
    finally:
        failed = [part.name for part in parts if part.status != "passed"]
        end = {"event": "end", "seconds": round(time.monotonic() - started, 2), "failed": failed}
        job.results.write("run.jsonl", end)
        print(table(parts), flush=True)
        if failed:
            say(f"did not pass: {', '.join(failed)}; the output is in {job.results.folder}/run.log")
    return 1 if failed else 0
