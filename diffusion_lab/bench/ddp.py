"""The command `python -m diffusion_lab.bench.ddp`: speed of two processes and of one with all threads.

Both train the U-Net of DDPM on the same batches, alternating, so that other load affects both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from diffusion_lab.network import UNet
from diffusion_lab.output import tolerant

Group = list[tuple[Any, Connection]]
"""Processes that train one network together, each with its connection."""


def train(rank: int, world: int, store: Path, options: argparse.Namespace, line: Connection) -> None:
    """Train one network as rank `rank` of `world`: for every number received, take that many steps.

    Sends the seconds, and every 1000th number of the gradient.
    """
    torch.set_num_threads(options.threads // world)
    torch.manual_seed(0)
    size = options.size
    network: nn.Module = UNet(3, size, channels=options.channels, dropout=0.0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4, fused=True)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        network = nn.parallel.DistributedDataParallel(
            network,
            gradient_as_bucket_view=options.bucket_view,
            static_graph=options.static_graph,
            bucket_cap_mb=options.bucket_mb,
        )
    generator, shard = torch.Generator().manual_seed(0), slice(rank, None, world)
    while steps := line.recv():
        start = time.perf_counter()
        for _ in range(steps):
            x, eps = torch.randn(2, options.batch_size, 3, size, size, generator=generator)[:, shard]
            t = torch.randint(1000, (options.batch_size,), generator=generator)[shard]
            optimizer.zero_grad()
            (network(x, t) - eps).square().mean().backward()
            optimizer.step()
        line.send((time.perf_counter() - start, _some([p.grad for p in network.parameters()])))


def _some(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten()[::1000] for g in gradients]).clone()


def start(world: int, store: Path, options: argparse.Namespace) -> Group:
    """Start the processes of a group, with the threads divided among them."""
    context, group = mp.get_context("spawn"), []
    os.environ["OMP_NUM_THREADS"] = str(options.threads // world)
    for rank in range(world):
        here, there = context.Pipe()
        process = context.Process(target=train, args=(rank, world, store, options, there), daemon=True)
        process.start()
        group.append((process, here))
    return group


def train_steps(group: Group, steps: int) -> tuple[float, Tensor]:
    """Train a group for some steps; return the seconds of its slowest process, and its last gradient."""
    for _, line in group:
        line.send(steps)
    found = [line.recv() for _, line in group]
    return max(seconds for seconds, _ in found), found[0][1]


def end(group: Group) -> None:
    """End the processes of a group."""
    for process, line in group:
        line.send(0)
        process.join()


def compare(options: argparse.Namespace) -> str:
    """Time both groups over some rounds after warm-up steps; return a report."""
    images = options.steps * options.batch_size
    with tempfile.TemporaryDirectory() as folder:
        groups = [start(1, Path(folder), options), start(options.processes, Path(folder, "store"), options)]
        gradients = [train_steps(group, 1)[1] for group in groups]
        for group in groups:
            train_steps(group, 1)  # DDP rebuilds its buckets after the first step
        rounds = [[train_steps(group, options.steps)[0] for group in groups] for _ in range(options.rounds)]
        for group in groups:
            end(group)
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    rates = [[images / seconds for seconds in column] for column in zip(*rounds, strict=True)]
    ratios = [one / several for one, several in rounds]
    names = (f"1 process x {options.threads}", f"{options.processes} x {options.threads // options.processes} with DDP")
    lines = [
        f"{name:<18}{statistics.median(rate):8.2f} images/s ({min(rate):.2f} to {max(rate):.2f})"
        for name, rate in zip(names, rates, strict=True)
    ]
    return "\n".join([
        *lines,
        f"{'ratio':<18}{statistics.median(ratios):8.3f} times as fast ({min(ratios):.3f} to {max(ratios):.3f})",
        f"{'gradient':<18}{error:8.0e} relative difference in the first step",
    ])  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.bench.ddp", description=main.__doc__)
    parser.add_argument("--batch-size", type=int, default=8, help="images in a step, over all processes")
    parser.add_argument("--size", type=int, default=32, help="pixels of an image's side")
    parser.add_argument("--channels", type=int, default=128, help="of the U-Net's top level; 128 is the paper's")
    parser.add_argument("--processes", type=int, default=2, help="processes of the second group")
    parser.add_argument("--threads", type=int, default=4, help="threads of each group")
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps in a round")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of both")
    parser.add_argument("--bucket-mb", type=float, default=25.0, help="megabytes of gradients sent at once")
    parser.add_argument("--bucket-view", action=argparse.BooleanOptionalAction, default=True, help="no second copy")
    parser.add_argument("--static-graph", action=argparse.BooleanOptionalAction, default=False, help="same every step")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the training speed of one process, and of several that share its threads."""
    options = parser().parse_args(arguments)
    count = sum(p.numel() for p in UNet(3, options.size, channels=options.channels).parameters())
    print(
        f"U-Net of {count:,} parameters, {options.batch_size} images of {options.size}x{options.size} a step, "
        f"{options.rounds} rounds of {options.steps} steps: median (least to most)",
        flush=True,
    )
    print(compare(options))


if __name__ == "__main__":
    tolerant()
    main()
