"""Time of one Fréchet distance beside torchmetrics and torch-fidelity: `python -m diffusion_lab.bench.frechet`.

Programs take turns within a round, so that a busy machine is busy for all of them. Each program is given the means
and covariances it works on; ours has decomposed the reference before, as it is used many times, unless "first use"
is said. A ratio is our time over theirs in the same round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from diffusion_lab.metric import Moments, frechet_distance, moments

PROGRAMS = ("torchmetrics", "torch-fidelity")


def features(count: int, dimensions: int, seed: int) -> Tensor:
    """Features whose variances fall as 1/k, in directions of no axis; float32 as extractors give them."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=generator)).Q
    noise = torch.randn(count, dimensions, generator=generator.manual_seed(seed))
    return (noise / torch.arange(1, dimensions + 1).sqrt()) @ rotation


def others(a: Moments, b: Moments) -> dict[str, Callable[[], float]]:
    """Program -> its distance from the same moments."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    first, second = ({"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in (a, b))
    return {
        "torchmetrics": lambda: _compute_fid(a.mean, a.covariance, b.mean, b.covariance).item(),
        "torch-fidelity": lambda: fid_statistics_to_metric(first, second, False)["frechet_inception_distance"],
    }


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def fresh(x: Moments) -> Moments:
    """The same moments with nothing decomposed yet."""
    return Moments(x.mean, None if x.rows is not None else x.covariance, x.count, x.rows)


def compare(title: str, a: Moments, b: Moments, rounds: int) -> None:
    """Print our time, and our time over each other program's: median and range over the rounds."""
    frechet_distance(a, b)
    seconds: dict[str, list[float]] = {}
    programs = others(a, b)
    ours = {"ours": lambda: frechet_distance(fresh(a), b), "first use": lambda: frechet_distance(fresh(a), fresh(b))}
    for _ in range(rounds):
        values = {}
        for name, work in (ours | programs).items():
            spent, values[name] = timed(work)
            seconds.setdefault(name, []).append(spent)
    print(f"{title}: ours {median(seconds['ours']):.3f} s, first use {median(seconds['first use']):.3f} s")
    for name in PROGRAMS:
        line = f"  {name} {median(seconds[name]):.3f} s"
        for mine in ours:
            ratios = [m / theirs for m, theirs in zip(seconds[mine], seconds[name], strict=True)]
            line += f"; {mine} / {name} {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{line}; values differ by {abs(values[name] - values['ours']):.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of every program (set OMP_NUM_THREADS alike)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--few", type=int, default=1000, help="samples of a small set")
    parser.add_argument("--many", type=int, default=10_000, help="samples of a full-rank set")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    sets = [features(n, chosen.dimensions, k) for k, n in enumerate((chosen.few, chosen.few, chosen.many, chosen.many))]
    few, other_few, many, other_many = map(moments, sets)
    print(f"{chosen.dimensions} dimensions, {chosen.threads} threads, {chosen.rounds} rounds: median (least to most)")
    spent, _ = timed(lambda: frechet_distance(moments(sets[0]), moments(sets[1])))
    print(f"from {chosen.few} + {chosen.few} features to a distance: ours {spent:.3f} s")
    compare(f"{chosen.few} against {chosen.few}", few, other_few, chosen.rounds)
    compare(f"{chosen.few} against {chosen.many}", few, many, chosen.rounds)
    compare(f"{chosen.many} against {chosen.many}", other_many, many, chosen.rounds)


if __name__ == "__main__":
    main()
