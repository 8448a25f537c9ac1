"""How good points are, in the plane or of many dimensions: distances, and what a density known exactly tells."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffusion_lab.data import DataModule
from diffusion_lab.evaluation.scorer import Record
from diffusion_lab.metric import energy_distance, sample_count, sliced_wasserstein

DISTANCES = {"sliced_wasserstein": sliced_wasserstein, "energy_distance": energy_distance}


def score_points(points: Tensor, data: DataModule) -> dict[str, Record]:
    """Distances to held-out points, and of a known density mean log density and weights of the modes.

    Each stands beside that of training points.  Points are (N, 2); latents and fields (N, ...) are points, too.
    """
    points = points.flatten(1)
    count = min(len(points), data.size("held_out"))  # equal counts, so that the distances compare like with like
    held_out, train = (data.images(*of).flatten(1) for of in (("held_out", count), ("train", len(points))))
    kilo = sample_count(len(points))
    drawn = {"target": type(data).__name__.lower(), "digest": data.fingerprint("held_out")[:16], "samples": len(points)}
    records: dict[str, Record] = {}
    for word, distance in DISTANCES.items():
        few = min(count, len(train))
        records[f"{word}_{kilo}"] = {
            "value": distance(points[:count], held_out),
            "better": "lower",
            "real": distance(train[:few], held_out[:few]),
            "protocol": {**drawn, "reference": "held_out", "reference_count": count},
        }
    return records | (density_records(points, train, data.target, kilo, drawn) if hasattr(data, "target") else {})


def density_records(
    points: Tensor, train: Tensor, target: Any, kilo: str, protocol: dict[str, Any]
) -> dict[str, Record]:
    """Mean exact log density of points, and how far the weights of the modes are from the true ones."""
    density = target.log_density(points).double()
    records: dict[str, Record] = {
        f"log_density_{kilo}": {
            "value": density.mean().item(),
            "better": "higher",
            "standard_error": density.std().item() / len(points) ** 0.5,
            "real": target.log_density(train).double().mean().item(),
            "protocol": protocol,
        }
    }
    if target.modes is not None:
        weights, true = target.mode_weights(points), target.modes.weights
        records[f"mode_weight_error_{kilo}"] = {
            "value": (weights - true.to(weights)).abs().max().item(),
            "better": "lower",
            "weights": weights.tolist(),
            "true_weights": true.tolist(),
            "protocol": protocol,
        }
    return records


def point_names(data: DataModule, count: int) -> list[str]:
    """Names of the metrics of `count` points."""
    words = [*DISTANCES]
    if hasattr(data, "target"):
        words += ["log_density"] + ["mode_weight_error"] * (data.target.modes is not None)
    return [f"{word}_{sample_count(count)}" for word in words]
