"""What a sampler does to arrays, in numbers: computed in float64 once for all steps, and used as they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Reading
from diffusion_lab.sampler.predictor import Move

Weights = tuple[Tensor, ...]
"""Scalars with the dtype and device of the arrays that they weigh."""


class Step(NamedTuple):
    """One pass of the sampling loop: it refines and corrects at the time `here`, asks at `there`, and moves to t.

    The weights are those of `Move`, and `root` is what a corrector has to do with the time; None where there is nothing
    to do.
    """

    t: float
    here: Reading
    refine: Weights | None
    root: Tensor | None
    churn: Weights | None
    there: Reading | None
    predict: Weights | None
    noise: Tensor | None


def combine(weights: Weights, x: Tensor, others: Sequence[Tensor]) -> Tensor:
    """weights[0] x + sum_k weights[k] others[k - 1], a new array."""
    total = x * weights[0]
    for k, other in enumerate(others, start=1):
        total.addcmul_(other, weights[k])
    return total


def scalars(rows: Sequence[Sequence[float] | None], like: Tensor) -> list[Weights | None]:
    """Each row's numbers as scalars with the dtype and device of `like`; None stays."""
    flat = torch.tensor([number for row in rows if row for number in row], dtype=torch.float64)
    each = iter(flat.to(like).unbind())
    return [row and tuple(islice(each, len(row))) for row in rows]


def make_steps(
    denoiser: Denoiser, like: Tensor, times: Tensor, moves: Sequence[Move | None], roots: Tensor | None, direct: bool
) -> list[Step]:
    """The steps along `times`, one for each, for arrays like `like` (B, ...).

    Args:
        moves: the predictor's, or None for each: one less than times, or as many where one leads from the last to data.
        roots: of a corrector at `times`.
        direct: write the moves with the network's output in place of its guess (`Move.by_output`).
    """
    asked = torch.cat([times, torch.tensor([move.t for move in moves if move], dtype=torch.float64)])
    readings, count = denoiser.readings(asked, like), len(times)
    there = [*(readings[count:] or [None] * len(moves)), None][:count]
    if direct:
        views = list(zip(*(k.tolist() for k in denoiser.views(asked)[0]), strict=True))
        at_s = [*views[1:count], (0.0, 0.0)][: len(moves)]  # asked for by moves that are refined; none is at data
        moves = [move.by_output(*ends) for move, *ends in zip(moves, views[count:], at_s, strict=True)]
    rows: list[Sequence[float] | None] = []
    arrivals, moves = [None, *moves][:count], [*moves, None][:count]
    for arrived, move in zip(arrivals, moves, strict=True):
        rows += [
            arrived and arrived.refine and (arrived.refine[0], *arrived.refine[1]),
            move and move.churn,
            move and (move.a, *move.b),
            (move.c,) if move and move.c > 0 else None,
        ]
    weights, steps = iter(scalars(rows, like)), []
    roots = [None] * count if roots is None else roots.to(like).unbind()
    each = zip(times.tolist(), readings[:count], roots, moves, there, strict=True)
    for t, here, root, move, asked_at in each:
        refine, churn, predict, noise = islice(weights, 4)
        steps.append(Step(move.s if move else t, here, refine, root, churn, asked_at, predict, noise and noise[0]))
    return steps
