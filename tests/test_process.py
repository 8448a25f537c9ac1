"""Schedules, SDEs and the discrete process against official values, closed forms and autograd."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_lab.process import (
    VE,
    VP,
    Cosine,
    DiscreteProcess,
    Geometric,
    Linear,
    ProbabilityPath,
    Rectified,
    Sigmoid,
    SingleLevel,
    SubVP,
)

SDES = {"ve": lambda: VE(Geometric(0.01, 50.0)), "vp": lambda: VP(Linear()), "subvp": lambda: SubVP(Linear())}


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("dtype, tolerance", [("f64", 1e-9), ("f32", 5e-5)])
def test_sde_matches_official_coefficients(recorded, name, dtype, tolerance):
    official, sde = recorded("sde_schedules"), SDES[name]()
    x = official["x"].to(torch.float64 if dtype == "f64" else torch.float32)
    t = official["t"].to(x.dtype)
    key = f"{name}.N1000"
    alpha, sigma = sde.marginal(t, x)
    assert relative(alpha * x, official[f"{key}.mean.{dtype}"]) < tolerance
    assert relative(sigma.flatten(), official[f"{key}.std.{dtype}"]) < tolerance
    assert relative(sde.g(t), official[f"{key}.diffusion.{dtype}"]) < tolerance
    drift = sde.f(t).reshape(-1, *(1,) * (x.dim() - 1)) * x
    assert (drift - official[f"{key}.drift.{dtype}"]).abs().max() <= tolerance * drift.abs().max()
    z = official["z"].double()
    log_p = -0.5 * ((z / sde.prior_std) ** 2 + math.log(2 * math.pi * sde.prior_std**2)).flatten(1).sum(1)
    assert relative(log_p, official[f"{key}.prior_logp.f64"]) < 1e-9


@pytest.mark.parametrize("name", SDES)
def test_published_scales_are_the_exact_ones(recorded, name):
    official, sde = recorded("sde_schedules"), SDES[name]()
    t = official["t"].double()
    assert relative(sde.alpha(t), official[f"{name}.exact_a"]) < 1e-9
    assert relative(sde.sigma(t), official[f"{name}.exact_s"]) < 1e-9


def test_vp_sigma_keeps_float32_precision_near_data():
    t = torch.tensor(1e-5)
    assert SDES["vp"]().sigma(t).item() == pytest.approx(SDES["vp"]().sigma(t.double()).item(), rel=1e-6)


@pytest.mark.parametrize("levels", [100, 1000])
def test_discrete_linear_schedule_matches_official_tables(recorded, levels):
    official = recorded("sde_schedules")
    assert relative(Linear().betas(levels), official[f"vp.N{levels}.discrete_betas.f64"]) < 1e-9
    t = torch.arange(1, levels + 1, dtype=torch.float64) / levels
    process = DiscreteProcess(Linear(), levels)
    assert relative(process.alpha(t) ** 2, official[f"vp.N{levels}.alphas_cumprod.f64"]) < 1e-9
    assert relative(process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t)) < 1e-12
    sigmas = DiscreteProcess(Geometric(0.01, 50.0), levels).sigma(t)
    assert relative(sigmas, official[f"ve.N{levels}.discrete_sigmas.f64"]) < 1e-9


def test_ddpm_published_betas():
    betas = Linear().betas(1000)
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-12) and betas[-1].item() == pytest.approx(0.02, rel=1e-12)
    assert DiscreteProcess(Linear()).alpha(torch.ones((), dtype=torch.float64)).item() ** 2 == pytest.approx(
        4.04e-5, rel=2e-3
    )


def test_cosine_betas_as_published():
    betas = Cosine().betas(4000)  # facts: Nichol & Dhariwal's code at T = 4000
    assert betas[0].item() == pytest.approx(9.87e-6, rel=1e-3)
    assert betas[-2].item() == pytest.approx(0.75, abs=1e-3) and betas[-1].item() == 0.999


@pytest.mark.parametrize("schedule", [Cosine(), Sigmoid()], ids=["cosine", "sigmoid"])
def test_clipped_schedules_stay_finite_at_one(schedule):
    one = torch.ones((), dtype=torch.float32)
    assert 0 < schedule.alpha(one) < 0.02 and schedule.log_abar(one).isfinite()
    before = torch.tensor(0.9, dtype=torch.float64)
    assert schedule.log_abar(before) == schedule.free_log_abar(before)


def test_cosine_and_sigmoid_closed_forms():
    t = torch.linspace(0, 0.9, 10, dtype=torch.float64)
    cosine = [
        math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        for u in t.tolist()
    ]
    torch.testing.assert_close(Cosine().log_abar(t).exp(), torch.tensor(cosine, dtype=torch.float64))
    s = torch.sigmoid(torch.tensor([3.0, -3.0], dtype=torch.float64) / 0.7)
    jabri = (s[0] - torch.sigmoid((-3 + 6 * t) / 0.7)) / (s[0] - s[1])
    torch.testing.assert_close(Sigmoid(tau=0.7).log_abar(t).exp(), jabri)


PATHS = [ProbabilityPath(Rectified()), ProbabilityPath(Geometric()), DiscreteProcess(Rectified(), 30)]
DISCRETE = [DiscreteProcess(Linear()), DiscreteProcess(Geometric(), 10), DiscreteProcess(Cosine(), 200)]


@pytest.mark.parametrize("process", DISCRETE)
def test_a_discrete_process_is_smooth_and_monotone_between_levels_and_stays_in_its_family(process):
    t = torch.linspace(1e-4, 1, 20_001, dtype=torch.float64)
    assert (process.log_snr(t).diff() < 0).all()
    kept = (
        process.alpha(t) if isinstance(process.schedule, Geometric) else process.alpha(t) ** 2 + process.sigma(t) ** 2
    )
    torch.testing.assert_close(kept, torch.ones_like(t), rtol=1e-12, atol=0)
    level = torch.arange(2, process.levels, dtype=torch.float64) / process.levels
    before, after = (process.g(level + side * 1e-9) for side in (-1, 1))  # f follows: both from one derivative
    torch.testing.assert_close(before, after, rtol=1e-5, atol=0)


def test_slopes_are_harmonic_means_and_zero_next_to_a_flat_side():
    from diffusion_lab.process.discrete import monotone_slopes

    slopes = monotone_slopes(torch.tensor([0.0, 1.0, 4.0, 4.0, 6.0]).double())
    torch.testing.assert_close(slopes, torch.tensor([1, 1.5, 0, 0, 2]).double())


@pytest.mark.parametrize(
    "process", [VP(Linear()), VE(Geometric()), DiscreteProcess(Linear(), 10), DiscreteProcess(Geometric(), 10)]
)
def test_timesteps_from_one_to_t_min(process):
    """Evenly from 1 to t_min, which is 1e-3 for VP and 1e-5 for VE (score_sde's run_lib), and the first level."""
    lowest = {VP: 1e-3, VE: 1e-5, DiscreteProcess: 0.1}[type(process)]
    even = 1 + (lowest - 1) * torch.arange(5).double() / 4
    torch.testing.assert_close(process.timesteps(5, "linear"), even, rtol=1e-9, atol=0)
    if process.levels is None:
        torch.testing.assert_close(process.timesteps(5), even, rtol=1e-9, atol=0)
        squares = (1 + (lowest**0.5 - 1) * torch.arange(5).double() / 4) ** 2  # DPM-Solver's time_quadratic
        torch.testing.assert_close(process.timesteps(5, "quadratic"), squares, rtol=1e-9, atol=0)
        times = process.sample_times(100_000, torch.device("cpu"), torch.Generator().manual_seed(0))
        assert 1e-5 <= times.min() < 1e-4 and times.max() <= 1


def test_single_level_is_at_t_one():
    process = SingleLevel(0.3, 2.5)
    assert process.sigma(process.sample_times(3, torch.device("cpu"))).tolist() == pytest.approx([0.3] * 3)
    assert process.timesteps(None).tolist() == process.timesteps(1).tolist() == [1] and process.prior_std == 2.5
    with pytest.raises(ValueError, match="a single noise level has one sampler step, got 5"):
        process.timesteps(5)


def test_geometric_levels_are_also_geometric_in_between():
    process, t = DiscreteProcess(Geometric(0.01, 1.0), 10), torch.tensor([0.25, 0.77], dtype=torch.float64)
    torch.testing.assert_close(process.sigma(t), 0.01 * 100 ** ((10 * t - 1) / 9), rtol=1e-12, atol=0)


@pytest.mark.parametrize("process", [build() for build in SDES.values()] + DISCRETE)
def test_time_inverts_log_snr_and_spacings_are_even_in_their_variable(process):
    t = torch.linspace(0.002, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    even, karras = process.timesteps(9, "log_snr"), process.timesteps(9, "karras", rho=3.0)
    for grid in (even, karras):
        assert len(grid) == 9 and grid[0] == 1 and grid[-1] == pytest.approx(process.t_min)
    steps = process.log_snr(even).diff()
    torch.testing.assert_close(steps, steps.mean().expand(8), rtol=1e-6, atol=0)
    steps = ((-process.log_snr(karras) / 2).exp() ** (1 / 3)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(8), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="at least 2 sampler steps, got 1"):
        process.timesteps(1, "karras")


@pytest.mark.parametrize("process", DISCRETE)
def test_importance_times_of_a_discrete_process_are_levels_with_unbiased_weights(process):
    t, factor = process.importance_times(20_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert torch.equal(process.level(t), process.level(t).round()) and process.level(t).min() == 1
    rate = (process.g(t.double()) / process.sigma(t.double())) ** 2
    torch.testing.assert_close(factor * rate.float(), (factor * rate.float())[:1].expand(len(t)), rtol=1e-4, atol=0)
    for h, exact in ((torch.ones_like(t), 1.0), (t, (1 + 1 / process.levels) / 2)):  # means over uniform levels
        assert (factor * h).mean().item() == pytest.approx(exact, abs=4.5 * (factor * h).std().item() / 20_000**0.5)


def test_a_single_level_always_has_one_time():
    process = SingleLevel(0.1)
    assert all((x == 1).all() for x in process.importance_times(5, torch.device("cpu")))
    assert process.timesteps(1, "karras").tolist() == [1.0]
    with pytest.raises(ValueError, match="one sampler step, got 5"):
        process.timesteps(5, "log_snr")


def test_times_keep_float32_under_another_default_dtype():
    """Lightning's bf16-true makes bfloat16 the default, which cannot distinguish levels 999 and 1000."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        for process in (DiscreteProcess(Linear()), VP(Linear()), SingleLevel()):
            assert process.sample_times(4, torch.device("cpu")).dtype == torch.float32
            assert process.importance_times(4, torch.device("cpu"))[0].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_subsets_of_sigma_levels_start_at_the_largest_noise():
    for steps in (3, 7, 10):
        assert DiscreteProcess(Geometric(0.01, 50), 10).timesteps(steps)[0] == 1
    assert DiscreteProcess(Geometric(0.01, 50), 10).timesteps(1)[0] == 0.1  # plain Langevin dynamics at the lowest


@pytest.mark.parametrize("process", [*(build() for build in SDES.values()), ProbabilityPath(Rectified())])
def test_importance_times_are_uniform_in_log_snr_with_unbiased_weights(process):
    t, factor = process.importance_times(20_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    high, low = process.log_snr(torch.tensor([process.t_train_min, 1.0], dtype=torch.float64))
    u = ((process.log_snr(t.double()) - low) / (high - low)).sort().values
    assert (u - torch.linspace(0, 1, 20_000)).abs().max() < 1.7 / 20_000**0.5  # Kolmogorov's bound, 0.6 %
    # E[factor h(t)] is the mean of h over uniform times.
    for h in (torch.ones_like(t), t**2):
        exact = 1.0 if (h == 1).all() else (1 - process.t_train_min**3) / 3 / (1 - process.t_train_min)
        assert (factor * h).mean().item() == pytest.approx(exact, abs=4.5 * (factor * h).std().item() / 20_000**0.5)


def test_reverse_variances_are_ddpms(recorded):
    process, betas = DiscreteProcess(Linear()), Linear().betas(1000)
    t = torch.arange(2, 1001, dtype=torch.float64) / 1000
    s = t - 1 / 1000
    abar = torch.cumprod(1 - betas, 0)
    small = betas[1:] * (1 - abar[:-1]) / (1 - abar[1:])
    torch.testing.assert_close(process.reverse_variance(s, t, "fixed_small"), small, rtol=1e-9, atol=0)
    torch.testing.assert_close(process.reverse_variance(s, t, "fixed_large"), betas[1:], rtol=1e-9, atol=0)
    assert process.decoder_variance.item() == pytest.approx(small[0].item(), rel=1e-9)


def test_level_zero_is_clean_and_levels_round_trip():
    process = DiscreteProcess(Cosine(), 1000)
    zero = torch.zeros(())
    assert process.alpha(zero) == 1 and process.sigma(zero) == 0
    level = torch.arange(1001)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(process.level(level.to(dtype) / 1000), level.double())


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_timesteps_are_ddims_sequences(recorded, steps):
    official, process = recorded("ddim"), DiscreteProcess(Linear())
    for spacing, name in (("uniform", "uniform"), ("quadratic", "quad")):
        grid = process.timesteps(steps, spacing)
        assert torch.equal(process.level(grid.flip(0)) - 1, official[f"seq.{name}.N{steps}"].double())


def test_all_timesteps_visit_every_level_and_too_many_steps_are_refused():
    process = DiscreteProcess(Linear(), 30)
    assert torch.equal(process.level(process.timesteps(None)), torch.arange(30.0, 0, -1).double())
    with pytest.raises(ValueError, match="between 1 and the model's 30 levels, got 31"):
        process.timesteps(31)


def test_training_times_cover_all_levels_evenly():
    process = DiscreteProcess(Linear(), 10)
    levels = process.level(process.sample_times(20_000, torch.device("cpu"), torch.Generator().manual_seed(0)))
    counts = torch.bincount(levels.long(), minlength=11)
    assert counts[0] == 0 and counts[1:].min() > 1800 and counts[1:].max() < 2200


def test_tables_survive_half_precision_and_stay_float64():
    process = DiscreteProcess(Linear()).half()
    assert process.alpha(torch.ones((), dtype=torch.float64)) == DiscreteProcess(Linear()).alpha(
        torch.ones((), dtype=torch.float64)
    )


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Linear(20.0, 0.1), "beta_min=20.0 must be less than beta_max=0.1"),
        (lambda: Cosine(s=0.0), r"Cosine: s=.* must be in \(0, inf\)"),
        (lambda: Sigmoid(start=3.0, end=-3.0), "must be less than end="),
        (lambda: Geometric(50.0, 0.01), "sigma_min=50.0 must be less than sigma_max=0.01"),
        (lambda: DiscreteProcess(Linear(), 1), "at least 2"),
        (lambda: VP(Geometric()), "VP needs schedule=linear, cosine or sigmoid"),
        (lambda: VE(Linear()), "VE needs schedule=geometric"),
    ],
)
def test_invalid_schedules_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
