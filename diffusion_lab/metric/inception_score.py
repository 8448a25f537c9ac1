"""The Inception Score, from logits that are read in blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.metric.rows import Rows, finite, read

_BLOCK = 4096  # rows in memory at once


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation (divided by N, not N - 1) of the scores of `splits` parts of the samples."""

    value: float
    standard_deviation: float
    splits: int


def inception_score(
    rows: Rows,
    logits: Callable[[Tensor], Tensor] | None = None,
    splits: int = 10,
    seed: int | None = 2020,
    device: torch.device | str = "cpu",
) -> InceptionScore:
    """Return exp mean KL(p(y|x) || p(y)), with p(y) the mean of p(y|x) over one part (Salimans et al. 2016).

    Rows are logits (N, K), or features that `logits` maps to logits. As in torch-fidelity, the parts are consecutive
    rows of NumPy's RandomState(seed).permutation(N), or of the given order if seed is None. The score is between 1
    and K. Memory: a block of rows and 2 K sums.

    Raises:
        ValueError: for fewer rows than splits, NaN or infinity.
    """
    count = len(rows)
    if not 1 <= splits <= count:
        raise ValueError(f"{count} samples cannot be split into {splits} parts: set splits to 1..{count}")
    # The generator of torch-fidelity, for the same parts.
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    bounds = [k * count // splits for k in range(splits + 1)]
    scores = [_score(rows, logits, order[first:last], device) for first, last in pairwise(bounds)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), splits)


def _score(
    rows: Rows, logits: Callable[[Tensor], Tensor] | None, chosen: np.ndarray, device: torch.device | str
) -> float:
    """Return exp(mean_x sum_y p(y|x) log p(y|x) - sum_y p(y) log p(y)), which equals exp mean KL."""
    probability, negentropy = 0.0, 0.0
    for first in range(0, len(chosen), _BLOCK):
        block = read(rows, np.sort(chosen[first : first + _BLOCK]), device)
        log_p = finite(block if logits is None else logits(block)).double().log_softmax(1)
        p = log_p.exp()
        probability = probability + p.sum(0)
        negentropy = negentropy + (p * log_p).sum()
    marginal = probability / len(chosen)
    return (negentropy / len(chosen) - torch.xlogy(marginal, marginal).sum()).exp().item()
