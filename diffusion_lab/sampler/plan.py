"""A recorded sampler, compiled into plain tensor operations: coefficients on the device, arrays in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.noise import Generators, stream
from diffusion_lab.sampler.engine import Written
from diffusion_lab.sampler.record import Combine, Draw, Evaluate, Instruction, Run, Show

Operation = Callable[[list[Any], Callable[[], Tensor]], Tensor]
"""(registers, function that returns fresh noise) -> array."""


class Plan:
    """Runs a recorded sampler on arrays like `written.like` (B, ...)."""

    def __init__(self, instructions: Sequence[Instruction], written: Written) -> None:
        self.instructions, self.written = instructions, written
        weights = list({weight for one in instructions if type(one) is Combine for weight in one.weights})
        self.scalar = dict(zip(weights, torch.tensor(weights, dtype=torch.float64).to(written.like), strict=True))
        written.prepare(one.t for one in instructions if type(one) is Evaluate)
        last = lifetimes(instructions)
        self.register = registers(instructions, last)
        kept = overwritten(instructions, last, Draw)
        if outputs_share_memory(written):
            kept |= overwritten(instructions, last, Evaluate)
        self.parts: list[tuple[list[tuple[int, Operation]], Show]] = []
        part: list[tuple[int, Operation]] = []
        for one in instructions:
            if type(one) is Show:
                self.parts.append((part, one))
                part = []
            else:
                operation = self.operation(one, *(self.register[array] for array in one.reads))
                part.append((self.register[one.array], copied(operation) if one.array in kept else operation))

    def operation(self, one: Instruction, *reads: int) -> Operation:
        """Compile one instruction to operate on registers."""
        if type(one) is Combine:
            return weighted_sum(reads, one.weights, self.scalar)
        if type(one) is Draw:
            return fresh
        (source,), dtype = reads, self.written.like.dtype
        if type(one) is Run:
            method, step, times = getattr(self.written, one.kind), one.step, one.times
            return lambda arrays, noise: method(step, arrays[source], *times)
        read = self.written.output_at(one.t, one.thresholded)

        def evaluate(arrays: list[Any], noise: Any) -> Tensor:
            output = read(arrays[source])
            return output if output.dtype is dtype else output.to(dtype)

        return evaluate

    def __call__(self, x: Tensor, generator: Generators = None) -> Iterator[tuple[float, Tensor, Tensor | None]]:
        """(t, x, x_0) of each state that was recorded to be shown, from the initial state x (B, ...)."""
        arrays: list[Any] = [x] * (1 + max(self.register.values()))
        noise = stream(x.shape, generator, x.dtype, x.device)
        self.written.start(noise)
        for operations, show in self.parts:
            for register, operation in operations:
                arrays[register] = operation(arrays, noise)
            x, *x0 = (arrays[self.register[array]] for array in show.reads)
            latest = self.written.latest
            yield show.t, x, x0[0] if x0 else latest and latest.x0


def fresh(arrays: list[Any], noise: Callable[[], Tensor]) -> Tensor:
    """Fresh noise, which reuses one buffer."""
    return noise()


def weighted_sum(reads: Sequence[int], weights: Sequence[float], scalar: Mapping[float, Tensor]) -> Operation:
    """sum_k weights[k] reads[k], in a new array."""
    (first, scale), *rest = sorted(zip(reads, weights, strict=True), key=lambda term: term[1] != 1)
    rest = [(register, scalar[weight]) for register, weight in rest]
    if scale != 1:
        scale = scalar[scale]

        def scaled(arrays: list[Any], noise: Any) -> Tensor:
            total = arrays[first] * scale
            for register, weight in rest:
                total.addcmul_(arrays[register], weight)
            return total

        return scaled
    (second, by_second), *rest = rest

    def added(arrays: list[Any], noise: Any) -> Tensor:
        total = torch.addcmul(arrays[first], arrays[second], by_second)
        for register, weight in rest:
            total.addcmul_(arrays[register], weight)
        return total

    return added


def copied(operation: Operation) -> Operation:
    """Fresh noise in its own memory."""
    return lambda arrays, noise: operation(arrays, noise).clone()


def lifetimes(instructions: Sequence[Instruction]) -> dict[int | None, int]:
    """Index of the last instruction that reads each array; of the one that makes it, if none reads it."""
    last: dict[int | None, int] = {}
    for position, one in enumerate(instructions):
        last |= dict.fromkeys((one.array, *one.reads), position)
    return last


def registers(instructions: Sequence[Instruction], last: Mapping[int | None, int]) -> dict[int, int]:
    """A register for each array; registers of arrays that are no longer read are reused."""
    register, free, count = {0: 0}, [], 1
    for position, one in enumerate(instructions):
        free += [register[array] for array in set(one.reads) if last[array] == position]
        if one.array is not None:
            if not free:
                free, count = [count], count + 1
            register[one.array] = free.pop()
            if last[one.array] == position:
                free.append(register[one.array])
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
