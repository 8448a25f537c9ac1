"""Accuracy of a classifier of noised data, at several noise levels."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.data import DataModule
from diffusion_lab.evaluation.scorer import Record
from diffusion_lab.model import Classifier
from diffusion_lab.noise import draw, image_generators


@torch.no_grad()
def correct(model: Classifier, data: Tensor, labels: Tensor, times: Tensor, indices: range, seed: int) -> Tensor:
    """The number of data points (B, ...) whose class is the most probable one at each of `times` (S,), float64 (S,).

    Data point i has the same noise, which depends on (seed, i) alone, at all times.
    """
    x0, labels = model.encode(data.to(model.device)), labels.to(model.device)
    eps = draw(x0.shape, image_generators(seed, indices, model.device), x0.dtype, model.device)
    counts = []
    for t in times.to(x0):
        x = model.denoiser.process.perturb(x0, t.expand(len(x0)), eps)
        counts.append((model.denoiser.logits(x, t).argmax(1) == labels).sum())
    return torch.stack(counts).double().cpu()


def accuracy(
    model: Classifier, data: DataModule, times: Tensor, samples: int | None = None, batch_size: int = 500, seed: int = 0
) -> Record:
    """The record of the held-out accuracy: its mean over `times` (S,), and its value at each of them.

    Args:
        samples: number of held-out data points; None: all.

    Computed on all ranks, each for its part of the data.
    """
    count = min(data.size("held_out"), samples or data.size("held_out"))
    mine, total = ranks.shard_range(count), torch.zeros(len(times), dtype=torch.float64)
    with ranks.synchronized(), model.evaluating():
        for start in range(mine.start, mine.stop, batch_size):
            indices = range(start, min(start + batch_size, mine.stop))
            batch = (read("held_out", len(indices), start) for read in (data.images, data.labels))
            total += correct(model, *batch, times, indices, seed)
    rates = (sum(ranks.gather(total)) / count).tolist()
    frequencies = torch.bincount(data.labels("held_out", count), minlength=model.denoiser.classes) / count
    process = model.denoiser.process
    noise = [(sigma / alpha).item() for alpha, sigma in zip(*process.alpha_sigma(times.double()), strict=True)]
    return {
        "value": sum(rates) / len(rates),
        "better": "higher",
        "chance": frequencies.max().item(),
        "terms": {f"sigma/alpha = {level:.3g}": rate for level, rate in zip(noise, rates, strict=True)},
        "curve": {"t": times.tolist(), "sigma_over_alpha": noise, "accuracy": rates},
        "protocol": {
            "method": "accuracy", "split": "held_out", "items": count, "times": len(times), "seed": seed,
            "data": data.fingerprint("held_out"),
        },
    }  # fmt: skip
