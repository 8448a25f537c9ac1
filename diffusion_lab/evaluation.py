"""Numbers that judge a model: quality of its samples and likelihood of held-out data, each with its protocol."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.data import DataModule
from diffusion_lab.likelihood import bits_per_dim
from diffusion_lab.metric import (
    Extractor,
    FeatureMoments,
    frechet_distance,
    metric_name,
    sample_count,
    sliced_wasserstein,
)
from diffusion_lab.model import Model
from diffusion_lab.noise import image_generators


def gather(value: Any) -> list[Any]:
    """The value of every rank, in rank order; [value] in a single process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def own_chunks(count: int, size: int) -> Iterator[range]:
    """Chunks of `size` indices out of 0..count-1 of this rank: chunk k falls to rank k modulo the number of ranks."""
    here, ranks = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        here, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for start in range(here * size, count, ranks * size):
        yield range(start, min(start + size, count))


class Evaluator:
    """Scores samples against held-out data, and held-out data under the model.

    Args:
        features: extractor for the Fréchet distance of images; None for points in the plane.
        samples: how many samples are scored.
        likelihood_samples: how many held-out points the likelihood is averaged over; None takes all, 0 none.
        batch_size: of sampling.
        likelihood_batch_size: of the likelihood, which may need the memory of a backward pass.
        seed: of the samples and of the likelihood's noise.
    """

    def __init__(
        self,
        features: Extractor | None,
        samples: int = 1000,
        likelihood_samples: int | None = None,
        batch_size: int = 500,
        likelihood_batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        self.features, self.samples, self.likelihood_samples = features, samples, likelihood_samples
        self.batch_size, self.likelihood_batch_size, self.seed = batch_size, likelihood_batch_size, seed
        self._real: tuple[FeatureMoments, FeatureMoments] | None = None

    def prepare(self, data: DataModule, device: torch.device) -> None:
        """Fit or load the extractor; call it early, so that a missing file is known before anything long.

        Raises:
            FileNotFoundError: if the extractor's weights are not there.
        """
        if self.features is not None:
            training = (data.images("train"), data.labels("train")) if self.features.learned else (None, None)
            self.features.prepare(*training, device)

    def real(self, data: DataModule, device: torch.device) -> tuple[FeatureMoments, FeatureMoments]:
        """Moments of the held-out images and of as many training images as there are samples; measured once."""
        if self._real is None:
            held_out, train = data.images("held_out"), data.images("train", self.samples)
            self._real = tuple(self.moments(x.split(self.batch_size), device) for x in (held_out, train))
        return self._real

    def moments(self, batches: Iterable[Tensor], device: torch.device) -> FeatureMoments:
        """Moments of the features of batches of images in [0, 1]."""
        moments = FeatureMoments()
        for images in batches:
            moments.update(self.features(images.to(device)))
        return moments

    def __call__(self, model: Model, data: DataModule) -> dict[str, dict[str, Any]]:
        """All metrics, name -> record with `value` and what it was measured against."""
        model.denoiser.nfe = 0
        drawn = [
            model.sample(len(chunk), seed=self.seed, first=chunk[0], batch_size=len(chunk))
            for chunk in own_chunks(self.samples, self.batch_size)
        ]
        calls = model.denoiser.nfe / max(len(drawn), 1)
        records = self.quality(drawn, data, model.device)
        for record in records.values():
            record["nfe"] = calls
        return {**records, **self.likelihood(model, data)}

    def quality(self, drawn: list[Tensor], data: DataModule, device: torch.device) -> dict[str, dict[str, Any]]:
        """Metrics of samples drawn on this rank and its fellows."""
        if self.features is not None:
            return self.image_quality(drawn, data, device)
        return self.plane_quality(drawn, data) if hasattr(data, "target") else {}

    def image_quality(self, drawn: list[Tensor], data: DataModule, device: torch.device) -> dict[str, dict[str, Any]]:
        """Fréchet distance to the held-out images, beside that of as many training images."""
        moments = FeatureMoments()
        for other in gather(self.moments(drawn, device)):
            moments.merge(other)
        reference, training = (real.result() for real in self.real(data, device))
        record = {
            "value": frechet_distance(moments.result(), reference),
            "training_images": frechet_distance(training, reference),
            "samples": moments.count,
            "reference": f"{reference.count} held-out images",
            "extractor": self.features.digest,
        }
        if hasattr(self.features, "predict"):
            own = Counter(k for images in drawn for k in self.features.predict(images.to(device)).tolist())
            total = sum(map(Counter, gather(dict(own))), Counter())
            record["classes"] = {str(k): total[k] for k in sorted(total)}
        return {metric_name(self.features, moments.count): record}

    def plane_quality(self, drawn: list[Tensor], data: DataModule) -> dict[str, dict[str, Any]]:
        """Sliced Wasserstein distance to held-out points, mean exact log density, and the weights of the modes."""
        points = torch.cat([p for part in gather(drawn) for p in part])
        held_out, train = data.images("held_out", len(points)), data.images("train", len(points))
        # Both counts are made equal, so that the distance compares like with like.
        points = points[: len(held_out)]
        kilo = sample_count(len(points))
        records: dict[str, dict[str, Any]] = {
            f"sliced_wasserstein_{kilo}": {
                "value": sliced_wasserstein(points, held_out),
                "training_points": sliced_wasserstein(train[: len(points)], held_out),
                "reference": f"{len(held_out)} held-out points",
            },
            f"log_density_{kilo}": {
                "value": data.target.log_density(points).mean().item(),
                "training_points": data.target.log_density(train).mean().item(),
            },
        }
        if data.target.modes is not None:
            got, true = data.target.mode_weights(points), data.target.modes.weights
            records[f"mode_weight_error_{kilo}"] = {
                "value": (got - true.to(got)).abs().max().item(),
                "weights": got.tolist(),
                "true_weights": true.tolist(),
            }
        return records

    def likelihood(self, model: Model, data: DataModule) -> dict[str, dict[str, Any]]:
        """The model's likelihood of held-out data: bits/dim of images, nats of points, split in its terms."""
        if self.likelihood_samples == 0:
            return {}
        x = data.images("held_out", self.likelihood_samples)
        return dict(self.one_likelihood(name, model, x) for name in model.likelihood)

    def one_likelihood(self, name: str, model: Model, x: Tensor) -> tuple[str, dict[str, Any]]:
        """(name with its unit, record) of one of the model's likelihoods."""
        own, calls = [], []
        with model.evaluating():
            for chunk in own_chunks(len(x), self.likelihood_batch_size):
                x0 = model.encode(x[chunk.start : chunk.stop].to(model.device))
                model.denoiser.nfe = 0
                result = model.likelihood[name](
                    model.denoiser, x0, model.grey_levels, image_generators(self.seed, chunk, "cpu")
                )
                calls.append(model.denoiser.nfe)
                own.append((-result.log_likelihood.cpu(), {k: v.cpu() for k, v in result.terms.items()}))
        ranks = [part for rank in gather(own) for part in rank]
        images, dimensions = model.grey_levels is not None, math.prod(model.shape)

        def scaled(parts: list[Tensor]) -> Tensor:
            return bits_per_dim(-torch.cat(parts), dimensions) if images else torch.cat(parts)

        total = scaled([nats for nats, _ in ranks])
        return f"{name}_{'bits_per_dim' if images else 'nats'}", {
            "value": total.mean().item(),
            "standard_error": total.std().item() / math.sqrt(len(total)),
            "terms": {k: scaled([terms[k] for _, terms in ranks]).mean().item() for k in ranks[0][1]},
            "nfe": sum(calls) / max(len(calls), 1),
            "reference": f"{len(total)} held-out {'images' if images else 'points'}",
        }
