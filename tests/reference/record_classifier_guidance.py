"""Record guided-diffusion's two forms of classifier guidance, for networks in closed form.

Usage: python tests/reference/record_classifier_guidance.py CLONE_OF_GUIDED_DIFFUSION
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import torch

LEVELS, SCALE = 50, 2.5


def main() -> None:
    for module in ("blobfile", "mpi4py"):
        sys.modules.setdefault(module, types.ModuleType(module))
    sys.path.insert(0, sys.argv[1])
    from guided_diffusion import gaussian_diffusion as gd

    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(4, 3, 4, 4, generator=generator) for _ in range(2))
    label = torch.tensor([0, 3, 3, 1])
    weights, by_time = torch.randn(48, 5, generator=generator), torch.randn(5, generator=generator) / 50

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        eps = torch.tanh(1.3 * x) + 0.1 * t[:, None, None, None] / 50
        return torch.cat([eps, 1.2 * torch.cos(3 * x)], dim=1)

    def gradient(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            logits = torch.tanh(start).flatten(1) @ weights + t[:, None] * by_time
            chosen = logits.log_softmax(1)[range(len(y)), y]
            return SCALE * torch.autograd.grad(chosen.sum(), start)[0]

    betas = gd.get_named_beta_schedule("cosine", LEVELS)
    store = {"x": x, "noise": noise, "label": label, "weights": weights, "by_time": by_time, "betas": betas}
    for name, kind in (("learned", "LEARNED_RANGE"), ("fixed", "FIXED_SMALL")):
        diffusion = gd.GaussianDiffusion(
            betas=betas,
            model_mean_type=gd.ModelMeanType.EPSILON,
            model_var_type=gd.ModelVarType[kind],
            loss_type=gd.LossType.MSE,
        )
        model = network if name == "learned" else lambda x, t: network(x, t)[:, :3]
        for index in (1, LEVELS // 2, LEVELS - 1):
            t = torch.full((4,), index)
            found = diffusion.p_mean_variance(model, x, t, clip_denoised=True)
            std = (0.5 * found["log_variance"]).exp()
            arguments = {"cond_fn": gradient, "p_mean_var": found, "x": x, "t": t, "model_kwargs": {"y": label}}
            store[f"{name}_mean_{index}"] = diffusion.condition_mean(**arguments) + std * noise
            arguments["p_mean_var"] = diffusion.p_mean_variance(model, x, t, clip_denoised=False)
            store[f"{name}_score_{index}"] = diffusion.condition_score(**arguments)["mean"] + std * noise
    arrays = {key: np.asarray(value) for key, value in store.items()}
    np.savez_compressed(Path(__file__).parent / "classifier_guidance.npz", **arrays)


if __name__ == "__main__":
    main()
