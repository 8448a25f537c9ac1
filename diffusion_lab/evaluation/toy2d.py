"""Metrics of points of any dimension: distances and, for a known density, log density and weights of the modes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffusion_lab.data import DataModule
from diffusion_lab.evaluation.scorer import Record
from diffusion_lab.metric import energy_distance, sample_count, sliced_wasserstein

DISTANCES = {"sliced_wasserstein": sliced_wasserstein, "energy_distance": energy_distance}


def score_points(points: Tensor, data: DataModule) -> dict[str, Record]:
    """Return distances to held-out points and, for a known density, mean log density and weights of the modes.

    Each record also has the value of training points.  Points are (N, 2), or flattened latents or fields (N, ...).
    """
    points = points.flatten(1)
    count = min(len(points), data.size("held_out"))  # equal numbers of both, as the distances are biased
    held_out, train = (data.images(*of).flatten(1) for of in (("held_out", count), ("train", len(points))))
    suffix = sample_count(len(points))
    protocol = {
        "target": type(data).__name__.lower(),
        "digest": data.fingerprint("held_out")[:16],
        "samples": len(points),
    }
    records: dict[str, Record] = {}
    for metric, distance in DISTANCES.items():
        few = min(count, len(train))
        records[f"{metric}_{suffix}"] = {
            "value": distance(points[:count], held_out),
            "better": "lower",
            "real": distance(train[:few], held_out[:few]),
            "protocol": {**protocol, "reference": "held_out", "reference_count": count},
        }
    return records | (density_records(points, train, data.target, suffix, protocol) if hasattr(data, "target") else {})


def density_records(
    points: Tensor, train: Tensor, target: Any, suffix: str, protocol: dict[str, Any]
) -> dict[str, Record]:
    """Return the mean exact log density of points, and the largest error of the weights of the modes."""
    density = target.log_density(points).double()
    records: dict[str, Record] = {
        f"log_density_{suffix}": {
            "value": density.mean().item(),
            "better": "higher",
            "standard_error": density.std().item() / len(points) ** 0.5,
            "real": target.log_density(train).double().mean().item(),
            "protocol": protocol,
        }
    }
    if target.modes is not None:
        weights, true = target.mode_weights(points), target.modes.weights
        records[f"mode_weight_error_{suffix}"] = {
            "value": (weights - true.to(weights)).abs().max().item(),
            "better": "lower",
            "weights": weights.tolist(),
            "true_weights": true.tolist(),
            "protocol": protocol,
        }
    return records


def point_names(data: DataModule, count: int) -> list[str]:
    """Return the names of the metrics of `count` points."""
    metrics = [*DISTANCES]
    if hasattr(data, "target"):
        metrics += ["log_density"] + ["mode_weight_error"] * (data.target.modes is not None)
    return [f"{metric}_{sample_count(count)}" for metric in metrics]
