"""Adaptive Runge-Kutta solvers for ODEs with expensive evaluations and quadrature components.

A quadrature component is an integral along the solution: its slope depends on x, and no slope depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Method = Literal["dopri5", "bs5", "dopri8", "bosh3"]
"""Order 5 (Dormand & Prince, used by the papers), 5 with averaging weights (Bogacki & Shampine, for slopes that are
rough in u), 8 (for tolerances far below 1e-5) or 3 (for loose tolerances)."""

State = tuple[Tensor, ...]
"""(x, q_1, ...), each (B, ...): the solution, and the quadrature components."""

Slope = Callable[[Tensor, bool], tuple[Tensor | None, ...]]
"""(x, integrals) -> d state / du at one u; without `integrals` only that of x, and None for the quadratures."""

Equation = Callable[[list[float]], Sequence[Slope]]
"""Values of u -> the slope at each; terms that depend on u alone are computed for all stages of a step at once."""


class SolverError(Exception):
    """The solver failed at u = `at`."""

    def __init__(self, at: float, reason: str) -> None:
        super().__init__(reason)
        self.at, self.reason = at, reason


@dataclass(frozen=True)
class ButcherTableau:
    """An explicit Runge-Kutta method with an embedded one; the difference of the two estimates the error of a step.

    Args:
        order: the error of the embedded solution grows as step size^order.
        rows: rows a_ij of the tableau for the stages after the first.  The last row gives the solution at the end of
            the step, and its stage is the first stage of the next step (FSAL).
        error: weights of the stages in the error estimate.
    """

    order: int
    rows: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]

    @cached_property
    def nodes(self) -> tuple[float, ...]:
        """Nodes c_i of the stages after the first, as fractions of the step."""
        return tuple(round(math.fsum(row), 15) for row in self.rows)  # exactly 1 at the end

    @cached_property
    def integrals(self) -> tuple[bool, ...]:
        """Which stages after the first have a weight in the quadrature; the others are needed for x only."""
        return tuple(bool(w or e) for w, e in zip((*self.rows[-1][1:], 1), self.error[1:], strict=True))


def embedded(order: int, rows: tuple[tuple[float, ...], ...], other: tuple[float, ...]) -> ButcherTableau:
    """The tableau whose embedded solution has weights `other`."""
    best = (*rows[-1], *(0.0,) * (len(other) - len(rows[-1])))
    return ButcherTableau(order, rows, tuple(b - o for b, o in zip(best, other, strict=True)))


TABLEAUS: dict[str, ButcherTableau] = {
    # Bogacki & Shampine 1989
    "bosh3": embedded(3, ((1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)), (7 / 24, 1 / 4, 1 / 3, 1 / 8)),
    # Dormand & Prince 1980, Table 2: RK5(4)7M
    "dopri5": embedded(
        5,
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    ),
    # Bogacki & Shampine 1996, the second of its estimates.  Its weights are positive: of errors of the stages that are
    # independent, a step keeps half as much (sum of squares 0.26) as with dopri5 (0.75), whose weights cancel.
    "bs5": embedded(
        5,
        (
            (1 / 6,),
            (2 / 27, 4 / 27),
            (183 / 1372, -162 / 343, 1053 / 1372),
            (68 / 297, -4 / 11, 42 / 143, 1960 / 3861),
            (597 / 22528, 81 / 352, 63099 / 585728, 58653 / 366080, 4617 / 20480),
            (174197 / 959244, -30942 / 79937, 8152137 / 19744439, 666106 / 1039181, -29421 / 29068, 482048 / 414219),
            (587 / 8064, 0, 4440339 / 15491840, 24353 / 124800, 387 / 44800, 2152 / 5985, 7267 / 94080),
        ),
        (2479 / 34992, 0, 123 / 416, 612941 / 3411720, 43 / 1440, 2272 / 6561, 79937 / 1113912, 3293 / 556956),
    ),
    # Prince & Dormand 1981, Table 2: RK8(7)13M; rational approximations to 18 digits
    "dopri8": embedded(
        8,
        (
            (1 / 18,),
            (1 / 48, 1 / 16),
            (1 / 32, 0, 3 / 32),
            (5 / 16, 0, -75 / 64, 75 / 64),
            (3 / 80, 0, 0, 3 / 16, 3 / 20),
            (29443841 / 614563906, 0, 0, 77736538 / 692538347, -28693883 / 1125000000, 23124283 / 1800000000),
            (16016141 / 946692911, 0, 0, 61564180 / 158732637, 22789713 / 633445777, 545815736 / 2771057229,
             -180193667 / 1043307555),
            (39632708 / 573591083, 0, 0, -433636366 / 683701615, -421739975 / 2616292301, 100302831 / 723423059,
             790204164 / 839813087, 800635310 / 3783071287),
            (246121993 / 1340847787, 0, 0, -37695042795 / 15268766246, -309121744 / 1061227803, -12992083 / 490766935,
             6005943493 / 2108947869, 393006217 / 1396673457, 123872331 / 1001029789),
            (-1028468189 / 846180014, 0, 0, 8478235783 / 508512852, 1311729495 / 1432422823, -10304129995 / 1701304382,
             -48777925059 / 3047939560, 15336726248 / 1032824649, -45442868181 / 3398467696, 3065993473 / 597172653),
            (185892177 / 718116043, 0, 0, -3185094517 / 667107341, -477755414 / 1098053517, -703635378 / 230739211,
             5731566787 / 1027545527, 5232866602 / 850066563, -4093664535 / 808688257, 3962137247 / 1805957418,
             65686358 / 487910083),
            (403863854 / 491063109, 0, 0, -5068492393 / 434740067, -411421997 / 543043805, 652783627 / 914296604,
             11173962825 / 925320556, -13158990841 / 6184727034, 3936647629 / 1978049680, -160528059 / 685178525,
             248638103 / 1413531060, 0),
            (14005451 / 335480064, 0, 0, 0, 0, -59238493 / 1068277825, 181606767 / 758867731, 561292985 / 797845732,
             -1041891430 / 1371343529, 760417239 / 1151165299, 118820643 / 751138087, -528747749 / 2220607170, 1 / 4),
        ),
        (13451932 / 455176623, 0, 0, 0, 0, -808719846 / 976000145, 1757004468 / 5645159321, 656045339 / 265891186,
         -3867574721 / 1518517206, 465885868 / 322736535, 53011238 / 667516719, 2 / 45, 0, 0),
    ),
}  # fmt: skip


@torch.no_grad()
def integrate(
    equation: Equation,
    state: State,
    stops: Sequence[float],
    rtol: float,
    atol: float,
    method: Method = "dopri5",
    max_steps: int = 10_000,
) -> list[State]:
    """Solve d state / du = slope from u = stops[0], in either direction; return the states at stops[1:].

    A step is accepted if the error norm of every sample (`error_norm`) is at most 1.  A sample is therefore solved at
    least as accurately as alone, whatever else is in the batch.  Steps end at each stop, and the slope is never
    evaluated beyond the last one.

    Raises:
        SolverError: if the step size underflows, or more than `max_steps` steps are needed between two stops.
    """
    tableau, u = TABLEAUS[method], stops[0]
    span = stops[-1] - u
    rates = equation([u])[0](state[0], True)
    step_size = initial_step_size(equation, state[0], rates[0], u, span, rtol, atol, tableau.order)
    solved, max_factor = [], 10.0
    for stop in stops[1:]:
        steps = 0
        while u != stop:
            # A step may be 10 % longer than estimated, to avoid a tiny last step.
            end = stop if abs(stop - u) <= 1.1 * step_size else u + math.copysign(step_size, span)
            if abs(end - u) < 1e-14 * abs(span) and end != stop:
                raise SolverError(u, "the step size underflows")
            if (steps := steps + 1) > max_steps:
                raise SolverError(u, f"max_steps={max_steps} exceeded")
            next_state, slopes = attempt(tableau, equation, u, end, state, rates)
            error = error_norm(advance(None, end - u, tableau.error, slopes), state, next_state, rtol, atol)
            factor = 0.9 * error ** (-1 / tableau.order) if 0 < error < math.inf else 10 * (error == 0)
            tried, factor = abs(end - u), min(max(factor, 0.2), max_factor)
            if error <= 1:  # a step shortened to end at a stop does not shorten the next one
                step_size = max(factor * tried, step_size * (tried < step_size))
                u, state, rates, max_factor = end, next_state, slopes[-1], 10.0
            else:  # also for NaN, which a far too long step may produce
                step_size, max_factor = factor * tried, 1.0
        solved.append(state)
    return solved


def attempt(
    tableau: ButcherTableau, equation: Equation, u: float, end: float, state: State, rates: State
) -> tuple[State, list[tuple[Tensor | None, ...]]]:
    """One step from u to `end`: the state at `end`, and the slopes of all stages; `rates` is the slope at u."""
    h, slopes = end - u, [rates]
    at = equation([u + c * h if c < 1 else end for c in tableau.nodes])
    for row, slope, integrals in zip(tableau.rows, at, tableau.integrals, strict=True):
        x = advance(state, h, row, [each[:1] for each in slopes])[0]
        slopes.append(slope(x, integrals))
    return (x, *advance(state[1:], h, tableau.rows[-1], [each[1:] for each in slopes[:-1]])), slopes


def advance(
    start: State | None, h: float, weights: Sequence[float], slopes: Sequence[tuple[Tensor | None, ...]]
) -> State:
    """start + h sum_k weights[k] slopes[k] for each component; start=None stands for zero."""
    ends = [k.mul(h * weights[0]) if start is None else torch.add(start[n], k, alpha=h * weights[0])
            for n, k in enumerate(slopes[0])]  # fmt: skip
    for weight, parts in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            for end, part in zip(ends, parts, strict=True):
                end.add_(part, alpha=h * weight)
    return tuple(ends)


def error_norm(difference: State, before: State, after: State, rtol: float, atol: float) -> float:
    """Error of a step in units of the tolerance: the maximum over the samples, of x and of each quadrature component.

        x           root mean square over a sample's entries of difference / (atol + rtol |x|)
        quadrature  difference / max(rtol, atol): its size says nothing, as any constant may be added to an integral

    Apart, since in a mean over all components that of one quadrature would not count beside thousands of entries of x.
    """
    squares = []
    for n, (d, b, a) in enumerate(zip(difference, before, after, strict=True)):
        scale = max(rtol, atol) if n else torch.maximum(b.abs(), a.abs()).mul_(rtol).add_(atol)
        squares.append((d / scale).reshape(len(d), -1).square().mean(1))
    return math.sqrt(torch.stack(squares).max().item())  # NaN if any is


def initial_step_size(
    equation: Equation, x: Tensor, rate: Tensor, u: float, span: float, rtol: float, atol: float, order: int
) -> float:
    """The size of the first step, at the cost of one evaluation; Hairer, Norsett & Wanner 1993, Section II.4.

    Its trial step is at most 1 % of the interval: where the slope is 0 at the start and grows, as that of a flow at the
    data, a longer one would see nothing of the change, and the first step would jump over it.

    Raises:
        SolverError: if the slope is not finite.
    """
    value, slope = error_norm((x,), (x,), (x,), rtol, atol), error_norm((rate,), (x,), (x,), rtol, atol)
    if not math.isfinite(slope):
        raise SolverError(u, f"the slope is {slope}")
    trial = min(0.01 * value / slope if value > 1e-5 and slope > 1e-5 else 1e-6 * abs(span), 0.01 * abs(span))
    h = math.copysign(trial, span)
    change = equation([u + h])[0](x + h * rate, False)[0] - rate
    second = error_norm((change,), (x,), (x,), rtol, atol) / trial
    steepest = max(slope, second if math.isfinite(second) else 0.0)  # the trial step may be far too long
    step_size = (0.01 / steepest) ** (1 / order) if steepest > 1e-15 else 1e-3 * abs(span)
    return min(100 * trial, step_size, abs(span))
