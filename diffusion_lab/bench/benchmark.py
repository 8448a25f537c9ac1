"""Benchmarks: implementations of the same work alternate in one process, so that other load affects all equally.

A ratio is the time of another implementation divided by ours in the same round; the median and range are reported.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from diffusion_lab.evaluation.seconds import DeviceClock

Work = Callable[[], Any]
"""One timed run of an implementation."""


@dataclass(frozen=True)
class Setting:
    """Settings of all benchmarks: device, threads, timed rounds, folder with clones of official programs."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 4
    rounds: int = 5
    official: Path | None = None
    small: bool = False
    """Tiny sizes, to test that everything runs."""


class Unavailable(Exception):
    """A program is not available; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Benchmark:
    """Implementations of the same work.

    Args:
        title: the work, with its sizes.
        implementations: name -> function that prepares it and returns one run.  The first is ours.  One whose
            preparation raises ImportError or `Unavailable` is reported as skipped.
        unit: unit of the results, "us a step", "ms", "images/s" or "MiB".
        per: units of work in a run (steps, images).
        meter: measures a run in seconds (`clock`) or bytes (`memory`).
        note: function of the results of each last run; for example the difference of the results.
        warmups: untimed runs of each implementation.
        rounds: timed runs, if other than in `Setting`; for example 1 for memory.
    """

    title: str
    implementations: Mapping[str, Callable[[], Work]]
    unit: str = "ms"
    per: int = 1
    meter: Callable[[Work, torch.device], tuple[float, Any]] | None = None
    note: Callable[[Mapping[str, Any]], str] | None = None
    warmups: int = 1
    rounds: int | None = None


@dataclass(frozen=True)
class Result:
    """Measurements of a benchmark: one per implementation and round, in the benchmark's unit."""

    benchmark: Benchmark
    measured: Mapping[str, list[float]]
    left_out: Mapping[str, str]
    note: str

    @property
    def ours(self) -> str:
        """Name of the first implementation."""
        return next(iter(self.measured))

    def ratios(self, name: str) -> list[float]:
        """Return per round its time or memory divided by ours; for rates, ours divided by its."""
        pairs = zip(self.measured[name], self.measured[self.ours], strict=True)
        return [ours / theirs if self.benchmark.unit.endswith("/s") else theirs / ours for theirs, ours in pairs]

    def __str__(self) -> str:
        lines = [self.benchmark.title]
        width = max(map(len, [*self.measured, *self.left_out]))
        for name, values in self.measured.items():
            line = f"  {name:<{width}} {number(statistics.median(values)):>8} {self.benchmark.unit}"
            if name != self.ours:
                line += f"   {spread(self.ratios(name))} x ours"
            lines.append(line)
        lines += [f"  {name:<{width}} skipped: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines + [f"  {self.note}"] * bool(self.note))

    @property
    def row(self) -> str:
        """A row of a Markdown table: the work, our median, and the ratio of each other implementation."""
        ours = f"{number(statistics.median(self.measured[self.ours]))} {self.benchmark.unit}"
        others = (f"{name} {spread(self.ratios(name))}" for name in self.measured if name != self.ours)
        return f"| {self.benchmark.title} | {ours} | {', '.join(others)} |"


def number(value: float) -> str:
    """Format with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(ratios: list[float]) -> str:
    """Format median and range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def clock(work: Work, device: torch.device) -> tuple[float, Any]:
    """Return the seconds of a run (on a CUDA device between two events), and its result."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    with DeviceClock(device) as elapsed:
        result = work()
    return elapsed.seconds(), result


def memory(work: Work, device: torch.device) -> tuple[float, Any]:
    """Return the peak memory of tensors in a run, in bytes above that at its start, and its result.

    On the CPU this is computed from the profiler's record of all allocations, which does not include tensors created
    before: a run should create all tensors that it uses.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        return torch.cuda.max_memory_allocated() - before, result
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            result = work()
        record.export_chrome_trace(path := str(Path(folder, "trace.json")))
        events = json.loads(Path(path).read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(accumulate((size for _, size in changes), initial=0)), result


SCALE = {"s": 1.0, "ms": 1e3, "us": 1e6, "MiB": 2.0**-20}


def in_unit(measured: float, benchmark: Benchmark) -> float:
    """Convert seconds or bytes of a run to the unit of a benchmark."""
    if benchmark.unit.endswith("/s"):
        return benchmark.per / measured
    return measured * SCALE[benchmark.unit.partition(" ")[0]] / benchmark.per


def run(benchmark: Benchmark, setting: Setting) -> Result:
    """Run all implementations: warm-ups, then once in each round, in rotating order."""
    works, left_out = {}, {}
    for name, make in benchmark.implementations.items():
        try:
            works[name] = make()
        except (ImportError, Unavailable) as error:
            left_out[name] = str(error)
    meter, last = benchmark.meter or clock, {}
    for _ in range(benchmark.warmups):
        for work in works.values():
            work()
    measured: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for k in range(benchmark.rounds or setting.rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            value, last[name] = meter(works[name], setting.device)
            measured[name].append(in_unit(value, benchmark))
    try:
        note = benchmark.note(last) if benchmark.note else ""
    except (ImportError, Unavailable) as error:
        note = f"not compared: {error}"
    return Result(benchmark, measured, left_out, note)
