"""A recorded sampler as it runs on a batch: coefficients on the device, arrays in registers, nothing computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_lab.denoiser import Preconditioning
from diffusion_lab.noise import Generators, stream
from diffusion_lab.sampler.engine import Written
from diffusion_lab.sampler.record import Combine, Draw, Evaluate, Instruction, Run


class Sum(NamedTuple):
    """register = scale first + sum of weight register + std z; a scale of None is 1, a std of None is 0."""

    register: int
    first: int
    scale: Tensor | None
    terms: tuple[tuple[int, Tensor], ...]
    std: Tensor | None


class Call(NamedTuple):
    """register = the network's output at source, or its prediction of x_0 after the sampler's threshold."""

    register: int
    source: int
    preconditioning: Preconditioning
    thresholded: bool
    copied: bool


class Fresh(NamedTuple):
    """register = noise that is used more than once, or later."""

    register: int


class Step(NamedTuple):
    """register = what a method of `Written` gives: (step, source, *times)."""

    register: int
    source: int
    method: Callable[..., Tensor]
    step: Callable[..., Any]
    times: tuple[float, ...]


class State(NamedTuple):
    """What is shown after a step: its time, and the registers of x and of x_0, None for that of the last `Step`."""

    t: float
    x: int
    x0: int | None


class Plan:
    """Runs what a sampler has recorded, for arrays like `written.like` (B, ...)."""

    def __init__(self, instructions: Sequence[Instruction], written: Written) -> None:
        self.written = written
        self.operations = operations(instructions, written)
        self.size = 1 + max(getattr(operation, "register", 0) for operation in self.operations)

    def __call__(self, x: Tensor, generator: Generators = None) -> Iterator[tuple[float, Tensor, Tensor | None]]:
        """(t, x, x_0) of each state that was recorded to be shown, from the initial state x (B, ...)."""
        registers: list[Any] = [None] * self.size
        registers[0] = x
        dtype, noise = x.dtype, stream(x.shape, generator, x.dtype, x.device)
        self.written.start(noise)
        read, bounded = self.written.denoiser.network_output, self.written.bounded
        for operation in self.operations:
            kind = type(operation)
            if kind is Sum:
                register, first, scale, terms, std = operation
                registers[register] = combined(registers, first, scale, terms, std and (noise, std))
            elif kind is Call:
                register, source, preconditioning, thresholded, copied = operation
                output = (bounded if thresholded else read)(registers[source], preconditioning)
                output = output if output.dtype is dtype else output.to(dtype)
                registers[register] = output.clone() if copied else output
            elif kind is State:
                latest = self.written.latest
                x0 = registers[operation.x0] if operation.x0 is not None else latest and latest.x0
                yield operation.t, registers[operation.x], x0
            elif kind is Fresh:
                registers[operation.register] = noise().clone()
            else:
                register, source, method, step, times = operation
                registers[register] = method(step, registers[source], *times)


def combined(
    registers: Sequence[Tensor],
    first: int,
    scale: Tensor | None,
    terms: Sequence[tuple[int, Tensor]],
    noise: tuple[Callable[[], Tensor], Tensor] | None,
) -> Tensor:
    """What a `Sum` gives: a new array, unless it is the first one itself."""
    total, fused = registers[first], torch.addcmul
    if scale is not None:
        total, fused = total * scale, torch.Tensor.addcmul_
    for other, weight in terms:
        total, fused = fused(total, registers[other], weight), torch.Tensor.addcmul_
    return total if noise is None else fused(total, noise[0](), noise[1])


def operations(instructions: Sequence[Instruction], written: Written) -> list[Any]:
    """The instructions, with arrays in registers and numbers as scalars of the dtype and device of `written.like`."""
    last, inline = lifetimes(instructions), drawn_where_used(instructions)
    preconditionings = iter(called(instructions, written))
    weights = iter(scalars([w for i in instructions if type(i) is Combine for w in i.terms.values()], written.like))
    outputs = {i.array for i in instructions if type(i) is Evaluate}
    shared = outputs_are_shared(written)
    registers, free, made = {0: 0}, [], []

    def place(array: int, position: int, reads: Sequence[int]) -> int:
        """A register for an array that is made at a position: if possible, of one read there for the last time."""
        for other in dict.fromkeys(reads):
            if last[other] == position:
                free.append(registers[other])
        registers[array] = free.pop() if free else len(registers_used)
        registers_used.add(registers[array])
        return registers[array]

    registers_used = {0}
    for position, instruction in enumerate(instructions):
        kind = type(instruction)
        if kind is Draw:
            if instruction.array not in inline:
                made.append(Fresh(place(instruction.array, position, [])))
        elif kind is Evaluate:
            source = registers[instruction.source]
            copied = shared and any(
                type(other) is Evaluate for other in instructions[position + 1 : last.get(instruction.array, 0)]
            )
            target = place(instruction.array, position, [instruction.source])
            made.append(Call(target, source, next(preconditionings), instruction.thresholded, copied))
        elif kind is Combine:
            each = {array: (number, next(weights)) for array, number in instruction.terms.items()}
            noise = next((array for array in each if array in inline), None)
            std = each.pop(noise)[1] if noise is not None else None
            # First an array that needs no product, else one that is not the network's, whose dtype may be another.
            first = min(each, key=lambda array: (array in outputs, each[array][0] != 1.0))
            number, weight = each.pop(first)
            terms = tuple((registers[array], weight) for array, (_, weight) in each.items())
            sources, start = [first, *each], registers[first]
            made.append(
                Sum(place(instruction.array, position, sources), start, None if number == 1.0 else weight, terms, std)
            )
        elif kind is Run:
            source = registers[instruction.source]
            target = place(instruction.array, position, [instruction.source])
            method = getattr(written, instruction.method)
            made.append(Step(target, source, method, instruction.step, instruction.times))
        else:
            x0 = None if instruction.x0 is None else registers[instruction.x0]
            made.append(State(instruction.t, registers[instruction.x], x0))
    return made


def lifetimes(instructions: Sequence[Instruction]) -> dict[int, int]:
    """Position at which each array is read for the last time."""
    return {array: position for position, one in enumerate(instructions) for array in one.reads}


def drawn_where_used(instructions: Sequence[Instruction]) -> set[int]:
    """The noise that need not be kept: it is used once, in a sum, before the next is drawn."""
    uses: dict[int, list[int]] = {}
    for position, one in enumerate(instructions):
        for array in one.reads:
            uses.setdefault(array, []).append(position)
    draws = [(position, one.array) for position, one in enumerate(instructions) if type(one) is Draw]
    ends = [*(position for position, _ in draws), len(instructions)][1:]
    found = set()
    for (_, array), end in zip(draws, ends, strict=True):
        at = uses.get(array, [])
        if len(at) == 1 and at[0] <= end:
            used = instructions[at[0]]
            if type(used) is Combine and len(used.terms) > 1:
                found.add(array)
    return found


def called(instructions: Sequence[Instruction], written: Written) -> list[Preconditioning]:
    """How the network is called, for every `Evaluate`; computed for all of their times at once."""
    times = [one.t for one in instructions if type(one) is Evaluate]
    distinct = list(dict.fromkeys(times))
    if not distinct:
        return []
    preconditionings = written.denoiser.preconditionings(torch.tensor(distinct, dtype=torch.float64), written.like)
    at = dict(zip(distinct, preconditionings, strict=True))
    return [at[t] for t in times]


def scalars(numbers: Sequence[float], like: Tensor) -> Sequence[Tensor]:
    """The numbers as scalars with the dtype and device of `like`."""
    return torch.tensor(numbers, dtype=torch.float64).to(like).unbind() if numbers else ()


def outputs_are_shared(written: Written) -> bool:
    """Whether a call of the network may overwrite what the last one gave, as a recorded graph on a GPU does."""
    compiled = getattr(written.denoiser.network, "_compiled_call_impl", None) is not None
    return compiled and written.like.device.type == "cuda"
