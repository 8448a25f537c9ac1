"""Record training losses and bounds of improved-diffusion for a network in closed form.

Usage: python tests/reference/record_iddpm.py CLONE_OF_IMPROVED_DIFFUSION
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import torch

SCHEDULES, LEVELS, LOSSES = ("linear", "cosine"), (1000, 4000), ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """eps_hat and v, with v outside of [-1, 1] in places."""
    return torch.cat([torch.tanh(1.3 * x) + 0.1 * t[:, None, None, None] / 4000, 1.2 * torch.cos(3 * x)], dim=1)


def main() -> None:
    for module in ("blobfile", "mpi4py"):
        sys.modules.setdefault(module, types.ModuleType(module))
    sys.path.insert(0, sys.argv[1])
    from improved_diffusion import gaussian_diffusion as gd

    generator = torch.Generator().manual_seed(0)
    x0 = (torch.rand(5, 3, 4, 4, generator=generator) * 255).round() / 127.5 - 1
    noise = torch.randn(x0.shape, generator=generator)
    store = {"x0": x0.numpy(), "noise": noise.numpy()}

    def diffusion(schedule: str, levels: int, loss: str) -> gd.GaussianDiffusion:
        return gd.GaussianDiffusion(
            betas=gd.get_named_beta_schedule(schedule, levels),
            model_mean_type=gd.ModelMeanType.EPSILON,
            model_var_type=gd.ModelVarType.LEARNED_RANGE,
            loss_type=gd.LossType[loss],
        )

    for schedule in SCHEDULES:
        for levels in LEVELS:
            t = torch.tensor([0, 1, levels // 3, levels - 2, levels - 1])
            for loss in LOSSES:
                terms = diffusion(schedule, levels, loss).training_losses(network, x0, t, noise=noise)
                store[f"{schedule}_{levels}_{loss}"] = terms["loss"].numpy()
        small, noises = diffusion(schedule, 50, "KL"), torch.randn(50, *x0.shape, generator=generator)
        terms = [
            small._vb_terms_bpd(network, x0, small.q_sample(x0, t, z), t, clip_denoised=True)["output"]
            for t, z in ((torch.full((5,), level), noises[level]) for level in range(50))
        ]
        store[f"{schedule}_noises"] = noises.numpy()
        store[f"{schedule}_terms"] = torch.stack(terms).numpy()
        store[f"{schedule}_prior"] = small._prior_bpd(x0).numpy()
    np.savez_compressed(Path(__file__).parent / "iddpm.npz", **store)


if __name__ == "__main__":
    main()
