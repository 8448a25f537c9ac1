"""Checks of how a sampler runs: in float32, and how much time it adds to the calls of the network."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import stream
from diffusion_lab.verification.check import Check, relative, seeded


def precision(sampler: Any, denoiser: Denoiser, x: Tensor) -> Check:
    """The difference of the samples in float32 and float64 from the same noise, of their largest value."""
    found = []
    for dtype in (torch.float32, torch.float64):
        start, noise = x.to(dtype), stream(x.shape, seeded(), torch.float64)
        written = sampler.written(denoiser, sampler.timesteps(denoiser), start)
        written.start(lambda noise=noise, dtype=dtype: noise().to(dtype))
        found.append(deque(sampler.follow(written, start), maxlen=1).pop()[1].double())
    return Check("float32 - float64", relative(*found), tolerance=1e-3)


WIDTH, BATCH, ROUNDS = 256, 64, 3
"""The network of the measurement of speed, two matrix products; the fastest of the rounds counts."""


def overhead(sampler: Any, denoiser: Denoiser) -> Iterator[Check]:
    """The time of a batch, divided by that of the same number of calls of a small network; reported only."""
    weights = torch.randn(2, WIDTH, WIDTH, generator=seeded()) / WIDTH**0.5
    small = denoiser.with_network(lambda x, c_noise: (x @ weights[0]).tanh() @ weights[1])
    sampler = copy.copy(sampler)
    sampler.dtype = torch.float32
    small.nfe = 0
    sampler(small, (BATCH, WIDTH), seeded())
    calls, x, c_noise = small.nfe, torch.randn(BATCH, WIDTH, generator=seeded()), torch.zeros(BATCH)
    draw = sampler.prepare(small, (BATCH, WIDTH)) if hasattr(sampler, "prepare") else None

    def bare() -> None:
        for _ in range(calls):
            small.network(x, c_noise)

    with torch.no_grad():
        run = (lambda: draw(seeded())) if draw else lambda: sampler(small, (BATCH, WIDTH), seeded())
        yield Check("time of the sampler / of its network calls", fastest(run) / fastest(bare), tolerance=None)


def fastest(work: Callable[[], Any]) -> float:
    """The shortest of several times of `work`, in seconds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
