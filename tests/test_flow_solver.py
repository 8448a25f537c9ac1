"""The Runge-Kutta pairs against their order conditions, and the solver against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_lab.runge_kutta import TABLEAUS, SolverError, integrate


def plain(function):
    """Turn (u, *state) -> slopes into an `Equation`, which computes only the requested slopes."""

    def equation(values):
        def at(u):
            def slope(x, integrals):
                first, *others = function(u, x)
                return (first, *(other if integrals else None for other in others))

            return slope

        return [at(u) for u in values]

    return equation


def powers(tableau):
    """Nodes and weights of all stages, (S,), the weights of the solution."""
    nodes = torch.tensor([0.0, *tableau.nodes], dtype=torch.float64)
    return nodes, torch.tensor([*tableau.rows[-1], 0.0], dtype=torch.float64)


@pytest.mark.parametrize("method, order", [("dopri5", 5), ("bs5", 5), ("dopri8", 8), ("bosh3", 3)])
def test_tableaus_have_their_order(method, order):
    """Quadrature of u^k exact up to the order, and errors of y' = y that fall as its power; the embedded one less so."""
    tableau = TABLEAUS[method]
    nodes, best = powers(tableau)
    error = torch.tensor(tableau.error, dtype=torch.float64)
    assert nodes[-1].item() == pytest.approx(1, abs=1e-14)
    for k in range(order):
        assert (best @ nodes**k).item() == pytest.approx(1 / (k + 1), abs=1e-13)
        if k < order - 1:
            assert (error @ nodes**k).item() == pytest.approx(0, abs=1e-13)
    assert (
        tableau.order == {"dopri5": 5, "bs5": 5, "dopri8": 8, "bosh3": 3}[method]
    )  # of the embedded solution's error in a step

    def step(h):
        """Sums of (error, estimate of it by the embedded solution) of steps of y' = y sin(u) + y from y = 1."""
        total = torch.zeros(2, dtype=torch.float64)
        for u in range(6):  # for one u an error may change its sign at some h
            y, rates = 1.0, [math.sin(u) + 1]
            for row, c in zip(tableau.rows, tableau.nodes):
                y = 1 + h * sum(w * k for w, k in zip(row, rates))
                rates.append(y * math.sin(u + h * c) + y)
            estimate = h * sum(e * k for e, k in zip(tableau.error, rates))
            total += torch.tensor([y - math.exp(math.cos(u) - math.cos(u + h) + h), estimate]).abs()
        return total.tolist()

    # A step of half the length errs less by 2^(order + 1), and its estimate by 2^order.
    h = {"dopri5": 0.1, "bs5": 0.2, "dopri8": 0.6, "bosh3": 0.01}[method]
    (long, long_estimate), (short, short_estimate) = step(h), step(h / 2)
    assert order + 0.4 < math.log2(long / short) < order + 2
    assert order - 0.6 < math.log2(long_estimate / short_estimate) < order + 1


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("times", [(0.0, 0.7, 1.5), (1.5, 0.7, 0.0)])
def test_integrate_agrees_with_closed_forms(method, dtype, times):
    """y' = y cos t has y = C exp(sin t); the integrals of 2 t and of y cos t along it are t^2 and y."""

    def function(t, y):
        return y * math.cos(t), y.new_full((2,), 2 * t), (y * math.cos(t))[:, 0]

    y0, q0 = torch.tensor([[1.0, -2.0], [30.0, 0.1]], dtype=dtype), torch.tensor([0.0, 5.0], dtype=dtype)
    states = integrate(plain(function), (y0, q0, y0[:, 0]), times, 1e-5, 1e-5, method)
    for t, (y, q, same) in zip(times[1:], states, strict=True):
        assert y.dtype == q.dtype == dtype
        torch.testing.assert_close(y, y0 * math.exp(math.sin(t) - math.sin(times[0])), rtol=5e-5, atol=5e-5)
        torch.testing.assert_close(q, q0 + t**2 - times[0] ** 2, rtol=5e-5, atol=5e-5)
        torch.testing.assert_close(same, y[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", TABLEAUS)
def test_error_follows_the_tolerance(method):
    """About ten times smaller for a tolerance ten times smaller; no superfluous evaluations."""
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        equation = plain(lambda t, x: (torch.stack([x[:, 1], -x[:, 0]], 1),))
        ((x,),) = integrate(equation, (x,), (0.0, 10.0), tolerance, tolerance, method)
        errors.append((x - torch.tensor([[math.cos(10), -math.sin(10)]], dtype=torch.float64)).abs().max().item())
        assert errors[-1] < 30 * tolerance
    assert errors[0] > 20 * errors[1] > 400 * errors[2]


def test_a_solution_keeps_no_graph_of_the_network():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    start = (torch.ones(2, 3, dtype=torch.float64),)
    ((y,),) = integrate(plain(lambda t, y: (weight * y,)), start, (0.0, 1.0), 1e-5, 1e-5)
    assert not y.requires_grad


def test_a_sample_is_solved_as_accurately_in_a_large_batch_as_alone():
    """A thousand samples at rest must not hide the error of one that moves: not one step may differ."""

    def solve(y):
        count = 0

        def function(t, y):
            nonlocal count
            count += 1
            return (20 * y * math.cos(20 * t),)

        return integrate(plain(function), (y,), (0.0, 1.0), 1e-5, 1e-5)[-1][0], count

    alone, steps = solve(torch.ones(1, 3, dtype=torch.float64))
    crowd, as_many = solve(torch.cat([torch.ones(1, 3), torch.zeros(1000, 3)]).double())
    assert as_many == steps
    torch.testing.assert_close(crowd[:1], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("entries", [1, 10_000])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("rtol, atol", [(1e-6, 1e-6), (1e-6, 1e-16), (1e-16, 1e-6)])
def test_the_error_of_an_integral_shortens_the_steps(entries, offset, rtol, atol):
    """x is constant and its integral is rough: it counts however many entries x has, and wherever it starts."""
    start = (torch.zeros(2, entries, dtype=torch.float64), torch.full((2,), offset, dtype=torch.float64))
    function = plain(lambda t, x: (torch.zeros_like(x), torch.full((2,), math.cos(40 * t), dtype=torch.float64)))
    ((_, q),) = integrate(function, start, (0.0, 1.0), rtol, atol)
    torch.testing.assert_close(q, torch.full_like(q, offset + math.sin(40) / 40), rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", TABLEAUS)
def test_a_small_slope_at_the_start_does_not_hide_what_follows(method):
    """y' = y g' with g = t^2 / (t^2 + 0.01): the slope is 0 at t = 0, large at 0.06, and small over most of [0, 6]."""

    def function(t, y):
        return (y * (0.02 * t / (t**2 + 0.01) ** 2),)

    y0 = torch.ones(2, 3, dtype=torch.float64)
    ((y,),) = integrate(plain(function), (y0,), (1e-6, 6.0), 1e-2, 1e-2, method)
    torch.testing.assert_close(y, y0 * math.exp(36 / 36.01), rtol=0.02, atol=0)


def test_errors_of_the_stages_average_out():
    """An integral of independent errors at the stages: bs5 keeps half the standard deviation of dopri5, per step."""
    kept = {method: math.sqrt(sum(w**2 for w in TABLEAUS[method].rows[-1])) for method in ("bs5", "dopri5")}
    assert kept["bs5"] < 0.6 * kept["dopri5"] and min(TABLEAUS["bs5"].rows[-1]) >= 0


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("times", [(1e-5, 1.0), (1.0, 0.6, 1e-3), (0.5, 0.50001)])
def test_the_solver_stays_in_the_interval_and_ends_a_step_at_every_stop(method, times):
    asked = []

    def function(t, y):
        asked.append(t)
        return (torch.full_like(y, math.cos(t)),)

    y0 = torch.ones(2, 3, dtype=torch.float64)
    states = integrate(plain(function), (y0,), times, 1e-4, 1e-4, method)
    assert min(times) == min(asked) and max(asked) == max(times)
    assert set(times) <= set(asked) and times[0] == asked[0] and asked[-1] == times[-1]
    for t, (y,) in zip(times[1:], states, strict=True):
        torch.testing.assert_close(y, y0 + math.sin(t) - math.sin(times[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method, stages, idle", [("dopri5", 6, 1), ("bs5", 7, 1), ("dopri8", 13, 4), ("bosh3", 3, 0)])
def test_an_integral_is_not_evaluated_at_stages_without_weight(method, stages, idle):
    wanted = []

    def equation(values):
        def slope(x, integrals):
            wanted.append(integrals)
            return torch.zeros_like(x), torch.zeros(1, dtype=torch.float64) if integrals else None

        return [slope for _ in values]

    start = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    integrate(equation, start, (0.0, 1.0), 1e-3, 1e-3, method)
    steps, rest = divmod(len(wanted) - 2, stages)  # the first slope, and one for the size of the first step
    assert rest == 0 and wanted.count(False) == 1 + steps * idle


def test_a_failing_solver_reports_where_and_why():
    start = (torch.full((2, 3), 2.0, dtype=torch.float64),)
    with pytest.raises(SolverError, match="step size underflows") as error:
        integrate(plain(lambda t, y: (y**2,)), start, (0.0, 1.0), 1e-5, 1e-5)  # y = 1 / (1/2 - t)
    assert error.value.at == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(SolverError, match="nan") as error:
        integrate(plain(lambda t, y: (y * math.nan,)), start, (0.0, 1.0), 1e-5, 1e-5)
    assert error.value.at == 0
    with pytest.raises(SolverError, match="the slope is inf"):
        integrate(plain(lambda t, y: (y * math.inf,)), start, (0.0, 1.0), 1e-5, 1e-5)
    with pytest.raises(SolverError, match="max_steps=5 exceeded"):
        integrate(plain(lambda t, y: (y * math.cos(99 * t),)), start, (0.0, 1.0), 1e-8, 1e-8, max_steps=5)
    with pytest.raises(SolverError, match="step size underflows") as error:
        integrate(plain(lambda t, y: (y * (1 if t < 0.3 else math.nan),)), start, (0.0, 1.0), 1e-5, 1e-5)
    assert error.value.at == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_a_trial_step_that_is_far_too_long_does_not_end_the_solution(beyond):
    """The slope is almost 0 at first, so the trial step spans the whole interval, where the slope is not finite."""
    start = (torch.ones(2, 3, dtype=torch.float64),)
    with pytest.raises(SolverError, match="step size underflows") as error:
        integrate(plain(lambda t, y: (y * (1e-6 if t < 0.3 else beyond),)), start, (0.0, 1.0), 1e-5, 1e-5)
    assert error.value.at == pytest.approx(0.3, abs=1e-6)
