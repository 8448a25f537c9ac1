"""The command `python -m diffusion_lab.bench.compile`: a training step of each network, compiled and in bf16.

Prints after how many steps the compilation has paid for itself.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diffusion_lab.bench.benchmark import Work, clock
from diffusion_lab.network import NCSNpp, RefineNet, UNet
from diffusion_lab.output import tolerant

DIGITS = {"channels": 24, "multipliers": (1, 1), "blocks": 1, "attention": (4,), "groups": 6, "dropout": 0.0}
STAGES = {"channels": 16, "multipliers": (1, 2), "dilations": (1, 1)}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "U-Net for digits": (lambda: UNet(1, 8, **DIGITS), 1, 64),
    "RefineNet of NCSNv2 for digits": (lambda: RefineNet(1, 8, **STAGES), 1, 64),
    "U-Net of DDPM": (lambda: UNet(3, 32), 3, 8),
    "NCSN++": (lambda: NCSNpp(3, 32), 3, 4),
    "RefineNet of NCSNv2": (lambda: RefineNet(3, 32), 3, 4),
}
"""Name -> network, channels of the images, batch; the images are 8x8 (1 channel) or 32x32."""


def step_of(network: nn.Module, channels: int, batch: int, device: torch.device, bf16: bool = False) -> Work:
    """A step of training on noise: output, gradient, Adam."""
    network.to(device, memory_format=torch.channels_last)
    side = 8 if channels == 1 else 32
    x, direction = torch.randn(2, batch, channels, side, side, device=device)
    t = torch.rand(batch, device=device)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = (network(x, t) - direction).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def row(name: str, rounds: int, device: torch.device) -> str:
    """Time the steps in turn; return a row of a Markdown table."""
    make, channels, batch = NETWORKS[name]
    compiled = make()
    compiled.compile()
    steps = {
        "plain": step_of(make(), channels, batch, device),
        "compiled": step_of(compiled, channels, batch, device),
        "bf16": step_of(make(), channels, batch, device, bf16=True),
    }
    first = {kind: clock(step, device)[0] for kind, step in steps.items()}
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds + 1):
        for kind, step in steps.items():
            times[kind].append(clock(step, device)[0])
    ratios = {
        kind: statistics.median(a / b for a, b in zip(times["plain"][1:], times[kind][1:], strict=True))
        for kind in ("compiled", "bf16")
    }
    plain = statistics.median(times["plain"][1:])
    gain = plain * (1 - 1 / ratios["compiled"])
    paid = (
        f"paid for after {(first['compiled'] - plain) / gain:,.0f} steps"
        if ratios["compiled"] > 1.02
        else "never paid for"
    )
    cost = f"{first['compiled']:.0f} s, {paid}"
    return f"| {name}, batch {batch} | {ratios['compiled']:.2f} | {cost} | {ratios['bf16']:.2f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how much faster a training step is with compile=true and with trainer.precision=bf16-mixed."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.bench.compile", description=main.__doc__)
    parser.add_argument("network", nargs="*", choices=[*NETWORKS, []], help="all, or of these")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("| network | compiled | first step | bf16 |\n|---|--:|---|--:|")
    for name in options.network or NETWORKS:
        print(row(name, options.rounds, torch.device(options.device)), flush=True)


if __name__ == "__main__":
    tolerant()
    main()
