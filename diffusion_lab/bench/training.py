"""Races of a step of training DDPM's U-Net for CIFAR-10: its time, in float32 and as recommended, and its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lab.bench import unets
from diffusion_lab.bench.race import Race, Setting, Work, memory
from diffusion_lab.bench.unets import Step

Program = Callable[[Setting, int], Step]
Turn = tuple[int, float]
"""Numbers that are trained, and the loss."""

FLOOR = "floor: its operations as matrix products"
PROGRAMS: Mapping[str, Program] = {
    "ours": unets.ours,
    "diffusers": unets.diffusers,
    "ours in ScoreSDE's form": partial(unets.ours, up_attention="last", pointwise_scale=0.1),
    "score_sde_pytorch": unets.score_sde,
    "EDM": unets.edm,
    "denoising-diffusion-pytorch": unets.denoising_diffusion_pytorch,
}


def races(setting: Setting) -> Iterator[Race]:
    """Float32, the recommended setting, and peak memory."""
    channels = 32 if setting.small else 128
    batch = 2 if setting.small else 128 if setting.device.type == "cuda" else 4 * setting.threads

    def all_of(make: Callable[..., Work], programs: Mapping[str, Program], batch: int) -> dict[str, Callable[[], Work]]:
        return {name: partial(make, program, setting, channels, batch) for name, program in programs.items()}

    title = f"training step of DDPM's U-Net, 32x32, batch {batch}"
    floor = {FLOOR: partial(products, setting, channels, batch, torch.float32)}
    yield Race(f"{title}, float32", all_of(timed, PROGRAMS, batch) | floor, note=message)
    floor = {FLOOR: partial(products, setting, channels, batch, torch.bfloat16 if bf16(setting) else torch.float32)}
    name = f"{title}, as recommended here: {', '.join(words(setting))}"
    yield Race(name, all_of(timed, recommended(setting), batch) | floor, note=message)
    batch = 8 if setting.small else 128
    yield Race(
        f"peak memory of the same, float32, batch {batch}: weights, gradients, Adam, average, activations",
        all_of(measured, {**PROGRAMS, "ours, checkpoint=true": partial(unets.ours, checkpoint=True)}, batch),
        unit="MiB",
        meter=memory,
        note=message,
        warmups=0,
        rounds=1,
    )


def bf16(setting: Setting) -> bool:
    """Whether the device multiplies bfloat16 by instructions of its own; without, it is slower than float32."""
    return setting.device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def words(setting: Setting) -> list[str]:
    """The recommended setting of this device, in words."""
    return ["channels_last", *["bf16"] * bf16(setting), *["compile"] * (not setting.small)]


def recommended(setting: Setting) -> Mapping[str, Program]:
    """Ours in that setting, ours without compile, ScoreSDE as it is shipped, and diffusers with the same means."""
    means = {"bf16": bf16(setting), "compiled": not setting.small}
    plain = {"ours, no compile": partial(unets.ours, bf16=means["bf16"])} if means["compiled"] else {}
    return {
        "ours": partial(unets.ours, **means),
        **plain,
        "score_sde_pytorch": unets.score_sde,
        "diffusers": partial(unets.diffusers, **means),
    }


def images(setting: Setting, batch: int) -> Tensor:
    """Images (batch, 3, 32, 32) in [-1, 1]: what a step costs does not depend on what they show."""
    return torch.rand(batch, 3, 32, 32, device=setting.device) * 2 - 1


def timed(program: Program, setting: Setting, channels: int, batch: int) -> Work:
    """Steps of one network."""
    step, x = program(setting, channels), images(setting, batch)
    return lambda: (step.parameters, step(x))


def measured(program: Program, setting: Setting, channels: int, batch: int) -> Work:
    """A network made anew, and its second step: the first one makes the optimiser's state."""
    program(setting, 32)  # one that is absent is told before

    def turn() -> Turn:
        step, x = program(setting, channels), images(setting, batch)
        step(x[:1])
        return step.parameters, step(x)

    return turn


def products(setting: Setting, channels: int, batch: int, dtype: torch.dtype) -> Work:
    """As many multiplications as our step does, in products of large matrices: what the device can do at most."""
    step, size = (
        unets.ours(setting, channels),
        512 if setting.small else 4096 if setting.device.type == "cuda" else 2048,
    )
    with FlopCounterMode(display=False) as counter:
        step(images(setting, 1))
    times = max(1, round(counter.get_total_flops() * batch / (2 * size**3)))
    a = torch.randn(size, size, device=setting.device, dtype=dtype)
    product = torch.empty_like(a)

    def turn() -> None:
        for _ in range(times):
            torch.mm(a, a, out=product)

    return turn


def message(last: Mapping[str, Any]) -> str:
    """Sizes of the networks."""
    steps = {name: turn for name, turn in last.items() if name != FLOOR}
    return "parameters: " + ", ".join(f"{name} {parameters:,}" for name, (parameters, _) in steps.items())
