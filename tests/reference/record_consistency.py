"""Record consistency losses, and those of progressive distillation, of openai/consistency_models for networks in closed form.

Usage: python tests/reference/record_consistency.py CLONE_OF_CONSISTENCY_MODELS
"""

from __future__ import annotations

import functools
import sys
import types
from pathlib import Path

import numpy as np
import torch

WEIGHTINGS = ("uniform", "snr", "snr+1", "karras", "truncated-snr")
LAWS = {"cd": ("fixed", 0.95, "fixed", 18, 18), "ct": ("adaptive", 0.9, "progressive", 2, 150)}


def network(scale: float, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """F of x and 250 ln(sigma), as the program calls it."""
    return torch.tanh(scale * x) + 0.1 * torch.cos(3 * x + t[:, None, None, None] / 250)


STUDENT, TARGET, TEACHER = (functools.partial(network, scale) for scale in (1.3, 1.1, 0.7))


def main() -> None:
    for name in ("piq", "torchvision.transforms", "cm.dist_util"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["piq"].LPIPS = sys.modules["torchvision.transforms"].RandomCrop = None
    sys.path.insert(0, sys.argv[1])
    package = types.ModuleType("cm")
    package.__path__, package.dist_util = [f"{sys.argv[1]}/cm"], sys.modules["cm.dist_util"]
    sys.modules["cm"] = package
    from cm import karras_diffusion, script_util

    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(6, 3, 4, 4, generator=generator) * 2 - 1
    noise = torch.randn(x0.shape, generator=generator)
    store = {"x0": x0.numpy(), "noise": noise.numpy()}
    for scales in (2, 18, 40):
        indices = torch.linspace(0, scales - 2, len(x0)).round().long()
        karras_diffusion.th.randint = lambda *args, chosen=indices, **kwargs: chosen
        store[f"{scales}_indices"] = indices.numpy()
        for norm in ("l1", "l2"):
            for weighting in WEIGHTINGS:
                student, teacher = (
                    karras_diffusion.KarrasDenoiser(
                        weight_schedule=weighting, distillation=distillation, loss_norm=norm
                    )
                    for distillation in (True, False)
                )
                for kind, more in (("ct", {}), ("cd", {"teacher_model": TEACHER, "teacher_diffusion": teacher})):
                    terms = student.consistency_losses(STUDENT, x0, scales, target_model=TARGET, noise=noise, **more)
                    store[f"{kind}_{scales}_{norm}_{weighting}"] = terms["loss"].numpy()
    for scales in (1, 4, 16):
        indices = torch.arange(len(x0)) % scales
        karras_diffusion.th.randint = lambda *args, chosen=indices, **kwargs: chosen
        for weighting in WEIGHTINGS:
            one, other = (karras_diffusion.KarrasDenoiser(weight_schedule=weighting, loss_norm="l2") for _ in range(2))
            more = {"noise": noise, "teacher_model": TEACHER, "teacher_diffusion": other}
            store[f"pd_{scales}_{weighting}"] = one.progdist_losses(STUDENT, x0, scales, **more)["loss"].numpy()
    for name, (ema_mode, ema, scale_mode, first, last) in LAWS.items():
        law = script_util.create_ema_and_scales_fn(ema_mode, ema, scale_mode, first, last, 1000, 1)
        store[f"law_{name}"] = np.array([law(step) for step in range(1001)])
    # Multi-step sampling of the student, with the noise of each step.
    draws = [torch.randn(x0.shape, generator=generator) for _ in range(4)]
    left = iter(draws)
    source = types.SimpleNamespace(randn=lambda *a, **k: next(left), randn_like=lambda x: next(left))
    student = karras_diffusion.KarrasDenoiser(distillation=True, loss_norm="l2")
    store["sample"] = karras_diffusion.karras_sample(
        student, STUDENT, x0.shape, 40, clip_denoised=False, model_kwargs={}, sampler="multistep", generator=source,
        ts=(0, 13, 22, 39),
    ).numpy()  # fmt: skip
    store["sample_noises"] = torch.stack(draws).numpy()
    np.savez_compressed(Path(__file__).parent / "consistency.npz", **store)


if __name__ == "__main__":
    main()
