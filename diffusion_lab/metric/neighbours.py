"""Precision, recall, density and coverage: who lies among whose nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.metric.rows import Rows, blocks, check_pair, read

_SIDE = 1024  # rows and columns of a block of distances: what stays in the cache is twice as fast
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # of a squared distance, in units of the squared norms


@dataclass(frozen=True)
class NeighbourScores:
    """Precision, recall and coverage are shares in [0, 1]; density may exceed 1.

    Attributes:
        precision: samples that lie in the neighbourhood of a reference row: are they like the data?
        recall: reference rows that lie in the neighbourhood of a sample: is all of the data produced?
        density: how many reference neighbourhoods a sample lies in, where 1 is expected of equal distributions.
        coverage: reference rows with a sample in their neighbourhood.
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

    With B_k(z) the closed ball around z that reaches to the k-th nearest other row of z's own set, samples
    x_1..x_M and reference rows r_1..r_N, k = `neighbours` and l = `density_neighbours`:

        precision = mean_i [some j: x_i in B_k(r_j)]        recall = mean_j [some i: r_j in B_k(x_i)]
        density = sum_ij [x_i in B_l(r_j)] / (l M)          coverage = mean_j [some i: x_i in B_l(r_j)]

    For equal distributions the expected density is 1 and the expected coverage is
    1 - (N-1)...(N-l) / ((M+N-1)...(M+N-l)). Each pair's distance is computed once, in blocks, in float64;
    a distance that exceeds a radius by rounding alone counts as equal to it.

    Raises:
        ValueError: for no more rows than neighbours, unequal D, NaN or infinity.
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
    # Distances do not change, and lose fewer digits near the origin.
    origin = read(reference, slice(0, _SIDE), device).mean(0)
    near, wide = _radii(reference, origin, (neighbours, density_neighbours), device)
    (own,) = _radii(samples, origin, (neighbours,), device)
    precise, inside = 0, 0
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=origin.device)
    covered = torch.zeros_like(recalled)
    for side, radius in zip(blocks(samples, _SIDE, device), own.split(_SIDE), strict=True):
        hit = torch.zeros_like(radius, dtype=torch.bool)
        for start, distances in _tiles(side - origin, reference, origin, device):
            part = slice(start, start + distances.shape[1])
            hit |= (distances <= near[part]).any(1)
            recalled[part] |= (distances <= radius[:, None]).any(0)
            among = distances <= wide[part]
            covered[part] |= among.any(0)
            inside += torch.count_nonzero(among).item()
        precise += hit.sum().item()
    return NeighbourScores(
        precision=precise / len(samples),
        recall=recalled.sum().item() / len(reference),
        density=inside / (density_neighbours * len(samples)),
        coverage=covered.sum().item() / len(reference),
    )


def _tiles(side: Tensor, rows: Rows, origin: Tensor, device: torch.device | str) -> Iterator[tuple[int, Tensor]]:
    """Pairs (first column, squared distances between `side` and that block of rows)."""
    squares = side.square().sum(1, keepdim=True)
    for number, block in enumerate(blocks(rows, _SIDE, device)):
        tile = block - origin
        distances = torch.addmm(tile.square().sum(1), side, tile.T, alpha=-2)
        yield number * _SIDE, distances.add_(squares)


def _radii(rows: Rows, origin: Tensor, ranks: tuple[int, ...], device: torch.device | str) -> list[Tensor]:
    """Squared distance of every row to its k-th nearest other row, with room for rounding, for each k."""
    nearest = []
    for block in blocks(rows, _SIDE, device):
        side = block - origin
        best = side.new_empty(len(side), 0)
        for _, distances in _tiles(side, rows, origin, device):
            count = min(max(ranks) + 1, distances.shape[1])  # the nearest of all is the row itself
            best = torch.cat([best, distances.topk(count, largest=False).values], 1)
            best = best.topk(min(max(ranks) + 1, best.shape[1]), largest=False).values
        nearest.append(best + _ROUNDING * (best + side.square().sum(1, keepdim=True)))
    return [torch.cat(nearest)[:, rank] for rank in ranks]
