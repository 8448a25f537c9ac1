"""A recorded sampler, compiled into a Python function of plain tensor operations, with a loop for steps that repeat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.noise import Generators, stream
from diffusion_lab.sampler.engine import Written
from diffusion_lab.sampler.record import Combine, Draw, Evaluate, Instruction, Run, Show

Line = tuple[str, list[Any]]
"""A line of Python with {} in place of each constant, and the constants."""

LONGEST = 64
"""Lines of the longest block that is looked for as the body of a loop."""


class Plan:
    """Runs a recorded sampler on arrays like `written.like` (B, ...).

    `source` is the function that it runs: r0 is the initial state, and c0, c1, ... are the constants of a step, that is
    weights as scalars on the device, the network at one time, and what `Run` calls.
    """

    def __init__(self, instructions: Sequence[Instruction], written: Written) -> None:
        self.instructions, self.written = instructions, written
        weights = list({weight for one in instructions if type(one) is Combine for weight in one.weights})
        self.scalar = dict(zip(weights, torch.tensor(weights, dtype=torch.float64).to(written.like), strict=True))
        written.prepare(one.t for one in instructions if type(one) is Evaluate)
        last = lifetimes(instructions)
        self.register = registers(instructions, last)
        self.kept = overwritten(instructions, last, Draw)
        if outputs_share_memory(written):
            self.kept |= overwritten(instructions, last, Evaluate)
        self.source, rows = program(
            [self.line(one, [f"r{self.register[k]}" for k in one.reads]) for one in instructions]
        )
        scope = {"rows": rows, "written": written}
        exec(compile(self.source, "<recorded sampler>", "exec"), scope)
        self.run = scope["run"]

    def line(self, one: Instruction, reads: Sequence[str]) -> Line:
        """One instruction, which reads these registers."""
        if type(one) is Show:
            x, x0 = (*reads, "written.latest and written.latest.x0")[:2]
            return f"yield {{}}, {x}, {x0}", [one.t]
        if type(one) is Draw:
            value, constants = "noise()", []
        elif type(one) is Combine:
            value, constants = self.weighted_sum(reads, one.weights)
        elif type(one) is Evaluate:
            value, constants = f"{{}}({reads[0]})", [self.written.output_at(one.t, one.thresholded)]
        else:
            value, constants = f"written.{one.kind}({{}}, {reads[0]}{', {}' * len(one.times)})", [one.step, *one.times]
        if one.array in self.kept:
            value += ".clone()"
        return f"r{self.register[one.array]} = {value}", constants

    def weighted_sum(self, reads: Sequence[str], weights: Sequence[float]) -> Line:
        """sum_k weights[k] reads[k], in a new array."""
        (value, scale), *rest = sorted(zip(reads, weights, strict=True), key=lambda term: term[1] != 1)
        constants, add = [self.scalar[weight] for _, weight in rest], "addcmul"
        if scale != 1:
            value, constants, add = f"({value} * {{}})", [self.scalar[scale], *constants], "addcmul_"
        for array, _ in rest:
            value, add = f"{value}.{add}({array}, {{}})", "addcmul_"
        return value, constants

    def __call__(self, x: Tensor, generator: Generators = None) -> Iterator[tuple[float, Tensor, Tensor | None]]:
        """(t, x, x_0) of each state that was recorded to be shown, from the initial state x (B, ...)."""
        noise = stream(x.shape, generator, x.dtype, x.device)
        self.written.start(noise)
        return self.run(x, noise)


def program(lines: Sequence[Line]) -> tuple[str, list[list[list[Any]]]]:
    """Source of a function of the initial state and of `noise`, and the constants in each round of each loop."""
    source, rows = "def run(r0, noise):\n", []
    for start, length, count in loops([text for text, _ in lines]):
        blocks = [lines[first : first + length] for first in range(start, start + length * count, length)]
        rows.append([[constant for _, constants in block for constant in constants] for block in blocks])
        names = [f"c{k}" for k in range(len(rows[-1][0]))]
        source += f"    for [{', '.join(names)}] in rows[{len(rows) - 1}]:\n"
        source += "".join(f"        {text}\n" for text, _ in blocks[0]).format(*names)
    return source, rows


def loops(texts: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """(start, length, count) of blocks of lines that make up all of them, each repeated `count` times."""
    start = 0
    while start < len(texts):
        best = 1, 1
        for length in range(1, min(LONGEST, (len(texts) - start) // 2) + 1):
            block, count = texts[start : start + length], 1
            while texts[start + count * length : start + (count + 1) * length] == block:
                count += 1
            if count > 1 and length * count > best[0] * best[1]:
                best = length, count
        yield start, *best
        start += best[0] * best[1]


def lifetimes(instructions: Sequence[Instruction]) -> dict[int | None, int]:
    """Index of the last instruction that reads each array; of the one that makes it, if none reads it."""
    last: dict[int | None, int] = {}
    for position, one in enumerate(instructions):
        last |= dict.fromkeys((one.array, *one.reads), position)
    return last


def registers(instructions: Sequence[Instruction], last: Mapping[int | None, int]) -> dict[int, int]:
    """A register for each array: the first whose array is no longer read, so that steps repeat theirs."""
    register, free, count = {0: 0}, set(), 1
    for position, one in enumerate(instructions):
        free |= {register[array] for array in one.reads if last[array] == position}
        if one.array is not None:
            register[one.array] = chosen = min(free, default=count)
            free.discard(chosen)
            count = max(count, chosen + 1)
            if last[one.array] == position:
                free.add(chosen)
    return register


def overwritten(instructions: Sequence[Instruction], last: Mapping[int | None, int], kind: type) -> set[int | None]:
    """Arrays made by one type of instruction that are shown, or read after the next such instruction."""
    found = {array for one in instructions if type(one) is Show for array in one.reads}
    made = [(position, one) for position, one in enumerate(instructions) if type(one) in (kind, Run)]
    found |= {one.array for (_, one), (position, _) in pairwise(made) if last[one.array] >= position}
    return {one.array for _, one in made if type(one) is kind} & found


def outputs_share_memory(written: Written) -> bool:
    """Whether a network call may overwrite its previous output, as a CUDA graph does."""
    compiled = getattr(written.denoiser.network, "_compiled_call_impl", None) is not None
    return compiled and written.like.device.type == "cuda"
