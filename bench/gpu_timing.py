# SPDX-License-Identifier: Apache-2.0
"""Times calls on a CUDA device with events, alone and replayed from a CUDA graph."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles

import torch


@dataclass
class TimingOptions:
    warm_up_ms: float = 150.0
    min_runs: int = 30
    max_runs: int = 200
    total_ms: float = 150.0  # of the timed runs together, between the two counts


@dataclass
class Timing:
    ms: float  # median
    quartiles_ms: tuple[float, float]
    runs: int


def summarise(samples_ms: list[float]) -> Timing:
    low, median, high = quantiles(samples_ms, n=4, method="inclusive")
    return Timing(median, (low, high), len(samples_ms))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(run: Callable, device: torch.device, options: TimingOptions) -> float:
    """Milliseconds that one call takes, about, after at least warm_up_ms of calls."""
    run()
    synchronize(device)
    count, calls, start = 1, 0, time.perf_counter()
    while True:
        for _ in range(count):
            run()
        synchronize(device)
        calls += count
        elapsed_ms = 1e3 * (time.perf_counter() - start)
        if elapsed_ms >= options.warm_up_ms:
            return elapsed_ms / calls
        count = min(2 * count, 16)


def time_call(run: Callable, device: torch.device, options: TimingOptions) -> Timing:
    """Each run follows one of its own, so that it finds the caches as it leaves them itself."""
    each_ms = warm_up(run, device, options)
    wanted = int(options.total_ms / max(each_ms, 1e-3))
    count = max(options.min_runs, min(wanted, options.max_runs))
    if device.type != "cuda":
        samples = []
        for _ in range(count):
            start = time.perf_counter()
            run()
            samples.append(1e3 * (time.perf_counter() - start))
        return summarise(samples)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    # The host must be ahead of the device, or a start event would be early.
    torch.cuda._sleep(1_000_000)
    run()
    for start_event, end_event in events:
        start_event.record()
        run()
        end_event.record()
    synchronize(device)
    return summarise([start.elapsed_time(end) for start, end in events])


def time_graph(run: Callable, device: torch.device, options: TimingOptions) -> Timing:
    """The same from a graph of one call: what is left when the host costs nothing."""
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    current.wait_stream(side)
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()  # the graph's memory must not be given to the next call
    timing = time_call(graph.replay, device, options)
    del kept
    return timing


def gemm_tflops(device: torch.device, size: int, options: TimingOptions) -> Callable[[], float]:
    """A function that times a [size, size] bfloat16 product of normal values, in TFLOP/s."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)

    def measure() -> float:
        timing = time_call(lambda: torch.mm(a, b, out=c), device, options)
        return 2e-9 * size**3 / timing.ms

    return measure
