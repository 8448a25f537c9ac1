"""Likelihood of held-out data: bits/dim of images, nats/dim of real-valued arrays, nats of points."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.data import DataModule
from diffusion_lab.evaluation.chunked_array import ChunkedArray, Rows
from diffusion_lab.evaluation.reference import content
from diffusion_lab.evaluation.sample_store import compute_missing
from diffusion_lab.evaluation.scorer import Record
from diffusion_lab.finite import NonFinite, bad_items, shown
from diffusion_lab.likelihood import bits_per_dim
from diffusion_lab.model import Model
from diffusion_lab.noise import image_generators


def score_likelihood(
    model: Model,
    name: str,
    data: DataModule,
    folder: Path,
    count: int | None = None,
    repeats: int = 1,
    batch_size: int = 100,
    seed: int = 0,
) -> dict[str, Record]:
    """Return one of the model's likelihoods of the first `count` held-out items (None: all), each `repeats` times.

    Every item has independent noise in every repeat.  The value is the mean over items of their mean over repeats; the
    standard error is that over items.  Chunks of fixed size are distributed over ranks and stored under `folder`, from
    where an interrupted evaluation resumes.

    Raises:
        NonFinite: naming the items without a finite likelihood.
    """
    size = data.size("held_out")
    count = size if count is None else min(count, size)
    likelihood = model.likelihood[name]
    name_of_data, digest_of_data = content(data, "held_out")
    protocol = {
        "data": name_of_data,
        "data_digest": digest_of_data,
        "count": count,
        "repeats": repeats,
        **likelihood.protocol(),
        **({} if model.labels is None else {"given": "the label"}),
        **({"guidance": str(model.guidance)} if of_guided_field(model, name) else {}),
    }
    digest = hashlib.sha256(json.dumps([protocol, seed], sort_keys=True).encode()).hexdigest()[:8]
    store = ChunkedArray(folder / f"likelihood_{name}_{digest}", batch_size)

    def work(chunk: range) -> Callable[[], None]:
        # Row r is item r modulo count: a chunk may contain items of two repeats.
        items = torch.tensor([row % count for row in chunk])
        first, last = items.min().item(), items.max().item()
        x = data.images("held_out", last - first + 1, first=first)[items - first]
        generators = image_generators(seed, chunk, "cpu")
        labels = data.labels("held_out", last - first + 1, first=first)[items - first]
        with model.evaluating():
            calls, denoiser = model.denoiser.nfe, model.conditional_denoiser(labels)
            denoiser = model.guidance(denoiser) if of_guided_field(model, name) else denoiser
            result = likelihood(denoiser, model.encode(x.to(model.device)), model.grey_levels, generators)
        found = [-result.log_likelihood, *result.terms.values()]
        if bad := bad_items(result.log_likelihood):
            raise NonFinite(
                f"likelihood ({name}) of held-out items {shown([chunk[i] % count for i in bad])} is not finite: try "
                "another checkpoint, weights=raw or trainer.precision=32-true; this chunk is not stored"
            )
        cost = torch.full((len(chunk),), float(model.denoiser.nfe - calls))
        rows = torch.stack([*(v.detach().cpu().double() for v in found), cost.double()], 1)
        return partial(store.write, chunk, rows)

    compute_missing(store, count * repeats, work, f"likelihood ({name})", model.device)
    record = ranks.on_first(lambda: summary(model, name, Rows(store, range(count * repeats))[:], repeats))
    return {likelihood_name(model, name): {**record, "protocol": protocol}}


def summary(model: Model, name: str, rows: Tensor, repeats: int) -> Record:
    """Return the record of rows (repeats x items, 2 + terms) with nats, their terms, and NFE."""
    values = rows.reshape(repeats, len(rows) // repeats, -1)
    total, parts, calls = values[..., 0], values[..., 1:-1], values[..., -1]

    def scaled(nats: Tensor) -> Tensor:
        if model.grey_levels is not None:
            return bits_per_dim(-nats, math.prod(model.shape))
        return nats / math.prod(model.shape) if model.is_image else nats

    of_items = scaled(total.mean(0))
    record = {
        "value": of_items.mean().item(),
        "better": "lower",
        "standard_error": of_items.std().item() / math.sqrt(len(of_items)) if len(of_items) > 1 else None,
        "terms": dict(zip(model.likelihood[name].TERMS, scaled(parts.mean((0, 1))).tolist(), strict=True)),
        "nfe": calls.mean().item(),
    }
    if repeats > 1:
        record["repeats"] = scaled(total.mean(1)).tolist()
    return record


def of_guided_field(model: Model, name: str) -> bool:
    """Whether the likelihood is that of the guided velocity field instead of the model's."""
    return model.guidance is not None and getattr(model.likelihood[name], "guided_field", False)


def likelihood_name(model: Model, name: str) -> str:
    """Return the name of the metric with its unit: bits for grey levels, nats for the density of real numbers.

    With K > 1 dequantizations inside the logarithm it ends in _kK, as it does not compare with a single one.
    """
    dequantizations = getattr(model.likelihood[name], "dequantizations", 1)
    name = f"{name}_guided_field" if of_guided_field(model, name) else name
    if model.grey_levels is not None:
        return f"{name}_bits_per_dim{f'_k{dequantizations}' if dequantizations > 1 else ''}"
    return f"{name}_nats_per_dim" if model.is_image else f"{name}_nats"
