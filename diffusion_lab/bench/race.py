"""Races: programs that do the same work take turns in one process, so that a busy machine is busy for all of them.

A ratio is the time of another program over ours in the same round; a median over the rounds is told with its range.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], Any]
"""One turn of a contestant."""


@dataclass(frozen=True)
class Setting:
    """What a whole benchmark shares: device, threads, timed rounds, and where clones of official programs lie."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 4
    rounds: int = 5
    official: Path | None = None
    small: bool = False
    """Sizes that only show that everything runs."""


class Absent(Exception):
    """A program that is not here, in words: what is missing and where it comes from."""


@dataclass(frozen=True)
class Race:
    """Contestants on the same work.

    Args:
        title: the work, with its sizes.
        contestants: name -> what makes one turn of it.  The first is ours.  One that raises ImportError or `Absent`
            while it is made is told as left out.
        unit: what a turn is measured in, "us a step", "ms", "images/s" or "MiB".
        per: units of work in a turn (steps, images).
        meter: takes a turn and gives seconds (`clock`) or bytes (`memory`).
        note: computed after the race, from what each contestant's last turn returned; such as how far results differ.
        warmups: untimed turns of each contestant.
        rounds: timed ones where one tells as much as many, as of memory; None: as set for all races.
    """

    title: str
    contestants: Mapping[str, Callable[[], Work]]
    unit: str = "ms"
    per: int = 1
    meter: Callable[[Work, torch.device], tuple[float, Any]] | None = None
    note: Callable[[Mapping[str, Any]], str] | None = None
    warmups: int = 1
    rounds: int | None = None


@dataclass(frozen=True)
class Result:
    """Measurements of a race: per contestant one for each round, in the race's unit."""

    race: Race
    measured: Mapping[str, list[float]]
    left_out: Mapping[str, str]
    note: str

    @property
    def ours(self) -> str:
        """Name of the first contestant."""
        return next(iter(self.measured))

    def ratios(self, name: str) -> list[float]:
        """Round by round, how many times our time or memory it took; of rates, how many times our rate is its."""
        pairs = zip(self.measured[name], self.measured[self.ours], strict=True)
        return [ours / theirs if self.race.unit.endswith("/s") else theirs / ours for theirs, ours in pairs]

    def __str__(self) -> str:
        lines = [self.race.title]
        width = max(map(len, [*self.measured, *self.left_out]))
        for name, values in self.measured.items():
            line = f"  {name:<{width}} {number(statistics.median(values)):>8} {self.race.unit}"
            if name != self.ours:
                line += f"   {spread(self.ratios(name))} x ours"
            lines.append(line)
        lines += [f"  {name:<{width}} left out: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines + [f"  {self.note}"] * bool(self.note))

    @property
    def row(self) -> str:
        """A row of a table in Markdown: the work, our median, and each other program's ratio."""
        ours = f"{number(statistics.median(self.measured[self.ours]))} {self.race.unit}"
        others = (f"{name} {spread(self.ratios(name))}" for name in self.measured if name != self.ours)
        return f"| {self.race.title} | {ours} | {', '.join(others)} |"


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(ratios: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def clock(work: Work, device: torch.device) -> tuple[float, Any]:
    """Seconds of a turn, on a CUDA device between two of its events; and what it returned."""
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        result = work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000, result
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def memory(work: Work, device: torch.device) -> tuple[float, Any]:
    """Bytes of tensors at the peak of a turn, beyond those at its start; and what it returned.

    On the CPU from the profiler's record of every allocation.  It knows no size of what was there before: a turn that
    frees such tensors is not given credit for it, so let a turn make what it needs.
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


def in_unit(measured: float, race: Race) -> float:
    """Seconds or bytes of a turn in the unit of a race."""
    if race.unit.endswith("/s"):
        return race.per / measured
    return measured * SCALE[race.unit.partition(" ")[0]] / race.per


def run(race: Race, setting: Setting) -> Result:
    """Let all take turns: some untimed, then one in each round, which another contestant begins each time."""
    works, left_out = {}, {}
    for name, make in race.contestants.items():
        try:
            works[name] = make()
        except (ImportError, Absent) as error:
            left_out[name] = str(error)
    meter, last = race.meter or clock, {}
    for _ in range(race.warmups):
        for work in works.values():
            work()
    measured: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for k in range(race.rounds or setting.rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            value, last[name] = meter(works[name], setting.device)
            measured[name].append(in_unit(value, race))
    try:
        note = race.note(last) if race.note else ""
    except (ImportError, Absent) as error:  # what it would compare with
        note = f"not compared: {error}"
    return Result(race, measured, left_out, note)
