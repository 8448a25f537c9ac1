"""Precision, recall, density and coverage from nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.metric.rows import Rows, blocks, check_pair, read

_SIDE = 1024  # rows and columns of a block of distances: blocks that fit into the cache are twice as fast
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # of a squared distance, in units of the squared norms


@dataclass(frozen=True)
class NeighbourScores:
    """Precision, recall and coverage are fractions in [0, 1]; density may exceed 1.

    Attributes:
        precision: fraction of samples in the neighbourhood of a reference row (fidelity).
        recall: fraction of reference rows in the neighbourhood of a sample (diversity).
        density: mean number of reference neighbourhoods that contain a sample, divided by its expectation for equal
            distributions.
        coverage: fraction of reference rows with a sample in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_scores(
    samples: Rows,
    reference: Rows,
    neighbours: int = 3,
    density_neighbours: int = 5,
    device: torch.device | str = "cpu",
) -> NeighbourScores:
    """Improved precision and recall (Kynkäänniemi et al. 2019) and density and coverage (Naeem et al. 2020).

    B_k(z) is the closed ball around z up to the k-th nearest other row of the same set. For samples x_1..x_M and
    reference rows r_1..r_N, k = `neighbours` and l = `density_neighbours`:

        precision = mean_i [some j: x_i in B_k(r_j)]        recall = mean_j [some i: r_j in B_k(x_i)]
        density = sum_ij [x_i in B_l(r_j)] / (l M)          coverage = mean_j [some i: x_i in B_l(r_j)]

    For equal distributions the expected density is 1 and the expected coverage is
    1 - (N-1)...(N-l) / ((M+N-1)...(M+N-l)). The distance of each pair is computed once, in blocks, in float64;
    a distance that exceeds a radius only by rounding counts as equal to it.

    Raises:
        ValueError: for a set with no more rows than neighbours, unequal D, NaN or infinity.
    """
    check_pair(samples, reference)
    if neighbours < 1 or density_neighbours < 1:
        raise ValueError(f"at least 1 neighbour is needed, got {neighbours} and {density_neighbours}")
    for name, rows, most in (
        ("samples", samples, neighbours),
        ("reference rows", reference, max(neighbours, density_neighbours)),
    ):
        if len(rows) <= most:
            raise ValueError(f"{len(rows)} {name} have no {most}-th neighbour: more than {most} are needed")
    # Shifting the origin leaves distances unchanged and reduces their rounding errors.
    origin = read(reference, slice(0, _SIDE), device).mean(0)
    radii, density_radii = _radii(reference, origin, (neighbours, density_neighbours), device)
    (sample_radii,) = _radii(samples, origin, (neighbours,), device)
    precise, inside = 0, 0
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=origin.device)
    covered = torch.zeros_like(recalled)
    for block, radius in zip(blocks(samples, _SIDE, device), sample_radii.split(_SIDE), strict=True):
        hit = torch.zeros_like(radius, dtype=torch.bool)
        for start, distances in _tiles(block - origin, reference, origin, device):
            part = slice(start, start + distances.shape[1])
            hit |= (distances <= radii[part]).any(1)
            recalled[part] |= (distances <= radius[:, None]).any(0)
            in_ball = distances <= density_radii[part]
            covered[part] |= in_ball.any(0)
            inside += torch.count_nonzero(in_ball).item()
        precise += hit.sum().item()
    return NeighbourScores(
        precision=precise / len(samples),
        recall=recalled.sum().item() / len(reference),
        density=inside / (density_neighbours * len(samples)),
        coverage=covered.sum().item() / len(reference),
    )


def _tiles(x: Tensor, rows: Rows, origin: Tensor, device: torch.device | str) -> Iterator[tuple[int, Tensor]]:
    """Yield (first column, squared distances between x and one block of rows)."""
    squares = x.square().sum(1, keepdim=True)
    for number, block in enumerate(blocks(rows, _SIDE, device)):
        y = block - origin
        distances = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
        yield number * _SIDE, distances.add_(squares)


def _radii(rows: Rows, origin: Tensor, ranks: tuple[int, ...], device: torch.device | str) -> list[Tensor]:
    """Return for each k the squared distance of every row to its k-th nearest other row, plus a bound of rounding."""
    nearest = []
    for block in blocks(rows, _SIDE, device):
        x = block - origin
        best = x.new_empty(len(x), 0)
        for _, distances in _tiles(x, rows, origin, device):
            count = min(max(ranks) + 1, distances.shape[1])  # the nearest row is the row itself
            best = torch.cat([best, distances.topk(count, largest=False).values], 1)
            best = best.topk(min(max(ranks) + 1, best.shape[1]), largest=False).values
        nearest.append(best + _ROUNDING * (best + x.square().sum(1, keepdim=True)))
    return [torch.cat(nearest)[:, rank] for rank in ranks]
