"""Benchmarks of a training step of DDPM's U-Net for CIFAR-10: time, in float32 and recommended settings, and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lab.bench import unets
from diffusion_lab.bench.benchmark import Benchmark, Setting, Work, memory
from diffusion_lab.bench.unets import Step

Program = Callable[[Setting, int], Step]
Run = tuple[int, float]
"""Number of trained parameters, and the loss."""

MATMUL = "matrix products of as many operations"
PROGRAMS: Mapping[str, Program] = {
    "ours": unets.ours,
    "diffusers": unets.diffusers,
    "ours in ScoreSDE's form": partial(unets.ours, up_attention="last", pointwise_scale=0.1),
    "score_sde_pytorch": unets.score_sde,
    "EDM": unets.edm,
    "denoising-diffusion-pytorch": unets.denoising_diffusion_pytorch,
}


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """Time in float32, time in the recommended settings, and peak memory."""
    channels = 32 if setting.small else 128
    batch = 2 if setting.small else 128 if setting.device.type == "cuda" else 4 * setting.threads

    def all_of(make: Callable[..., Work], programs: Mapping[str, Program], batch: int) -> dict[str, Callable[[], Work]]:
        return {name: partial(make, program, setting, channels, batch) for name, program in programs.items()}

    title = f"training step of DDPM's U-Net, 32x32, batch {batch}"
    bound = {MATMUL: partial(products, setting, channels, batch, torch.float32)}
    yield Benchmark(f"{title}, float32", all_of(timed, PROGRAMS, batch) | bound, note=sizes)
    bound = {MATMUL: partial(products, setting, channels, batch, torch.bfloat16 if bf16(setting) else torch.float32)}
    name = f"{title}, as recommended here: {', '.join(recommended_names(setting))}"
    yield Benchmark(name, all_of(timed, recommended(setting), batch) | bound, note=sizes)
    batch = 8 if setting.small else 128
    yield Benchmark(
        f"peak memory of the same, float32, batch {batch}: weights, gradients, Adam, average, activations",
        all_of(measured, {**PROGRAMS, "ours, checkpoint=true": partial(unets.ours, checkpoint=True)}, batch),
        unit="MiB",
        meter=memory,
        note=sizes,
        warmups=0,
        rounds=1,
    )


def bf16(setting: Setting) -> bool:
    """Whether the device has bfloat16 instructions; without, bfloat16 is slower than float32."""
    return setting.device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def recommended_names(setting: Setting) -> list[str]:
    """Return the names of the recommended settings of this device."""
    return ["channels_last", *["bf16"] * bf16(setting), *["compile"] * (not setting.small)]


def recommended(setting: Setting) -> Mapping[str, Program]:
    """Ours in these settings, ours without compile, ScoreSDE unchanged, and diffusers in the same settings."""
    options = {"bf16": bf16(setting), "compiled": not setting.small}
    plain = {"ours, no compile": partial(unets.ours, bf16=options["bf16"])} if options["compiled"] else {}
    return {
        "ours": partial(unets.ours, **options),
        **plain,
        "score_sde_pytorch": unets.score_sde,
        "diffusers": partial(unets.diffusers, **options),
    }


def images(setting: Setting, batch: int) -> Tensor:
    """Return random images (batch, 3, 32, 32) in [-1, 1]."""
    return torch.rand(batch, 3, 32, 32, device=setting.device) * 2 - 1


def timed(program: Program, setting: Setting, channels: int, batch: int) -> Work:
    """Training steps of one network."""
    step, x = program(setting, channels), images(setting, batch)
    return lambda: (step.parameters, step(x))


def measured(program: Program, setting: Setting, channels: int, batch: int) -> Work:
    """The second step of a new network; the first one creates the optimiser's state."""
    program(setting, 32)  # raises Unavailable before the measurement

    def run() -> Run:
        step, x = program(setting, channels), images(setting, batch)
        step(x[:1])
        return step.parameters, step(x)

    return run


def products(setting: Setting, channels: int, batch: int, dtype: torch.dtype) -> Work:
    """As many operations as in our step, as products of large matrices: an upper bound of the device's speed."""
    step, size = (
        unets.ours(setting, channels, bf16=True),  # with which no layer uses Winograd's algorithm
        512 if setting.small else 4096 if setting.device.type == "cuda" else 2048,
    )
    with FlopCounterMode(display=False) as counter:
        step(images(setting, 1))
    times = max(1, round(counter.get_total_flops() * batch / (2 * size**3)))
    a = torch.randn(size, size, device=setting.device, dtype=dtype)
    product = torch.empty_like(a)

    def run() -> None:
        for _ in range(times):
            torch.mm(a, a, out=product)

    return run


def sizes(last: Mapping[str, Any]) -> str:
    """Report the sizes of the networks."""
    steps = {name: run for name, run in last.items() if name != MATMUL}
    return "parameters: " + ", ".join(f"{name} {parameters:,}" for name, (parameters, _) in steps.items())
