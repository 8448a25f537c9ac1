"""How good points in the plane are, where the true density is known exactly."""

from __future__ import annotations

from torch import Tensor

from diffusion_lab.data import DataModule
from diffusion_lab.evaluation.quality import Record
from diffusion_lab.metric import energy_distance, sample_count, sliced_wasserstein


def score_points(points: Tensor, data: DataModule) -> dict[str, Record]:
    """Distances to held-out points, mean exact log density, and weights of the modes, each beside training points'."""
    count = min(len(points), data.size("held_out"))  # equal counts, so that the distances compare like with like
    held_out, train = data.images("held_out", count), data.images("train", len(points))
    target, kilo = data.target, sample_count(len(points))
    drawn = {"target": type(data).__name__.lower(), "digest": data.fingerprint("held_out")[:16], "samples": len(points)}
    records: dict[str, Record] = {}
    for word, distance in (("sliced_wasserstein", sliced_wasserstein), ("energy_distance", energy_distance)):
        records[f"{word}_{kilo}"] = {
            "value": distance(points[:count], held_out),
            "better": "lower",
            "real": distance(train[:count], held_out),
            "protocol": {**drawn, "reference": "held_out", "reference_count": count},
        }
    density = target.log_density(points).double()
    records[f"log_density_{kilo}"] = {
        "value": density.mean().item(),
        "better": "higher",
        "standard_error": density.std().item() / len(points) ** 0.5,
        "real": target.log_density(train).double().mean().item(),
        "protocol": drawn,
    }
    if target.modes is not None:
        weights, true = target.mode_weights(points), target.modes.weights
        records[f"mode_weight_error_{kilo}"] = {
            "value": (weights - true.to(weights)).abs().max().item(),
            "better": "lower",
            "weights": weights.tolist(),
            "true_weights": true.tolist(),
            "protocol": drawn,
        }
    return records


def point_names(data: DataModule, count: int) -> list[str]:
    """Names of the metrics of `count` points."""
    words = ["sliced_wasserstein", "energy_distance", "log_density"]
    return [f"{w}_{sample_count(count)}" for w in words + ["mode_weight_error"] * (data.target.modes is not None)]
