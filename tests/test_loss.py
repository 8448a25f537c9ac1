"""Training losses against official values, and their weightings against closed forms."""

from __future__ import annotations

import itertools

import analytic
import pytest
import torch

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import WEIGHTS, Constant, DenoisingLoss, Importance, LogitNormal, LogNormal
from diffusion_lab.loss.coupling import optimal_transport
from diffusion_lab.noise import image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, Cosine, DiscreteProcess, Geometric, Linear, ProbabilityPath, Rectified, SubVP
from diffusion_lab.verification import mixture
from diffusion_lab.verification.mixture import exact_denoiser

OFFICIAL = {  # process, parameterization, what the official program calls its network with
    "ddpm": (lambda: DiscreteProcess(Linear()), Parameterization("eps", "level"), lambda c: c),
    "smld": (lambda: DiscreteProcess(Geometric(0.01, 50.0)), Parameterization("score", "level"), lambda c: 999 - c),
    "cont.vp": (lambda: VP(Linear()), Parameterization("scaled_score", "time_999"), lambda c: c),
    "cont.subvp": (lambda: SubVP(Linear()), Parameterization("scaled_score", "time_999"), lambda c: c),
    "cont.ve": (lambda: VE(Geometric(0.01, 50.0)), Parameterization("score", "log_sigma"), torch.exp),
}


def losses(official, name, weights, reduction, theta, dtype):
    build, row, c_noise = OFFICIAL[name]
    process = build()
    # In the VP models of score_sde the network's output is -sigma * score, i.e. eps.
    sign = -1.0 if row.output == "scaled_score" else 1.0
    denoiser = Denoiser(lambda x, c: sign * analytic.toy_net(x, c_noise(c), theta), process, row)
    if name == "ddpm":
        t = (official["labels"].double() + 1) / 1000
    elif name == "smld":
        t = (1000 - official["labels"].double()) / 1000  # their label 0 is the largest sigma
    else:
        t = official["u"].to(dtype) * (1 - 1e-5) + 1e-5
    loss = DenoisingLoss(**weights, reduction=reduction)
    return loss.at(denoiser, official["x0"].to(dtype), t.to(dtype), official["z"].to(dtype)).mean()


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("rm, reduction", [(1, "mean"), (0, "half_sum")])
@pytest.mark.parametrize("likelihood", [0, 1])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_losses_and_gradients_match_the_official_ones(recorded, name, rm, reduction, likelihood, dtype, tolerance):
    if likelihood and not name.startswith("cont"):
        pytest.skip("published for continuous processes only")
    official = recorded("sde_losses")
    key = f"{name}.lw{likelihood}.rm{rm}" if name.startswith("cont") else f"{name}.rm{rm}"
    weights = {"weighting": "likelihood"} if likelihood else {}
    theta = official["theta"].to(dtype).requires_grad_()
    loss = losses(official, name, weights, reduction, theta, dtype)
    (gradient,) = torch.autograd.grad(loss, theta)
    assert abs(loss.item() / official[f"{key}.loss"].item() - 1) < tolerance
    want = official[f"{key}.grad_theta"]
    assert (gradient - want).abs().max() / want.abs().max() < 5 * tolerance


def denoiser_of(process):
    return Denoiser(lambda x, c: torch.zeros_like(x), process, Parameterization("eps", "nothing"))


@pytest.mark.parametrize("output", ["eps", "x0", "v", "u", "edm", "score", "scaled_score"])
@pytest.mark.parametrize("process", [DiscreteProcess(Linear()), DiscreteProcess(Geometric()), VP(Cosine())])
def test_every_parameterization_gives_the_same_estimate(output, process):
    """Equivalent networks of every output type give the same x_0, eps, score and v."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(5, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.002, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    alpha, sigma = process.marginal(t, x0)
    x = alpha * x0 + sigma * eps
    v = alpha * eps - sigma * x0
    f = -v / (alpha**2 + sigma**2).sqrt()
    prediction = {
        **{"eps": eps, "x0": x0, "v": v, "u": eps - x0, "edm": f, "score": -eps / sigma, "scaled_score": -eps}
    }[output]
    estimate = Denoiser(lambda x, c: prediction, process, Parameterization(output, "log_sigma"))(x, t)
    torch.testing.assert_close(estimate.eps, eps, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(estimate.x0, x0, rtol=1e-6, atol=1e-4 if isinstance(process, DiscreteProcess) else 1e-6)
    torch.testing.assert_close(estimate.v, alpha * eps - sigma * x0, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(estimate.score, -eps / sigma)


@pytest.mark.parametrize(
    "weighting, output",
    [("x0", "x0"), ("v", "v"), ("simple", "eps"), *(("output", name) for name in ("x0", "v", "u", "eps"))],
)
@pytest.mark.parametrize("process", [DiscreteProcess(Linear()), SubVP(Linear()), DiscreteProcess(Geometric(0.01, 5.0))])
def test_weightings_give_a_uniformly_weighted_residual_of_their_name(weighting, output, process):
    """With weighting=x0 the loss is the plain mean squared error of x_0, and so on."""
    x0, eps, prediction = (torch.randn(6, 3, 2, 2, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([0.01, 0.1, 0.3, 0.6, 0.8, 0.9], dtype=torch.float64)
    alpha, sigma = process.marginal(t, x0)
    true = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "u": eps - x0}[output]
    denoiser = Denoiser(lambda x, c: prediction, process, Parameterization(output, "log_sigma"))
    loss = DenoisingLoss(weighting=weighting).at(denoiser, x0, t, eps)
    torch.testing.assert_close(loss, (prediction - true).square().flatten(1).mean(1))


def test_min_snr_is_the_published_clamp():
    process = DiscreteProcess(Linear())
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    snr = process.log_snr(t).exp()
    torch.testing.assert_close(
        WEIGHTS["min_snr"](denoiser_of(process), t, 5.0), torch.minimum(snr, torch.tensor(5.0)) / snr
    )


def test_variational_weight_is_ho_equation_12():
    betas = Linear().betas(1000)
    abar = torch.cumprod(1 - betas, 0)
    process, t = DiscreteProcess(Linear()), torch.arange(2, 1001, dtype=torch.float64) / 1000
    want = 1000 * betas**2 / (2 * betas * (1 - betas) * (1 - abar))  # sigma_t^2 = beta_t
    torch.testing.assert_close(process.vlb_weight(t, "fixed_large"), want[1:], rtol=1e-8, atol=0)
    small = betas[1:] * (1 - abar[:-1]) / (1 - abar[1:])
    want = 1000 * betas[1:] ** 2 / (2 * small * (1 - betas[1:]) * (1 - abar[1:]))
    torch.testing.assert_close(process.vlb_weight(t, "fixed_small"), want, rtol=1e-8, atol=0)
    # The last step's own posterior has no variance; the program takes the second's.
    first = 1000 * (1 - abar[0]) / (2 * abar[0] * small[0])
    for variance in ("fixed_small", "fixed_large"):
        got = process.vlb_weight(torch.tensor([0.001], dtype=torch.float64), variance)
        torch.testing.assert_close(got, first.reshape(1), rtol=1e-8, atol=0)


@pytest.mark.parametrize("process", [VP(Linear()), SubVP(Linear()), VE(Geometric())])
def test_likelihood_weighting_is_twice_the_variational_one_and_importance_keeps_its_mean(process):
    t = torch.tensor([0.2, 0.5, 0.8])
    twice = 2 * DenoisingLoss(simple_weight=0.0, vlb_weight=1.0).weight(denoiser_of(process), t)
    torch.testing.assert_close(DenoisingLoss("likelihood").weight(denoiser_of(process), t), twice)
    # The network says 0, so the loss is w(t) |eps|^2 with mean E_t[w(t)] = log-SNR range, whatever the times' density.
    denoiser = Denoiser(lambda x, c: torch.zeros_like(x), process, Parameterization("eps", "nothing"))
    losses = {
        name: DenoisingLoss("likelihood", time_law=law)(
            denoiser, torch.zeros(20_000, 4), torch.Generator().manual_seed(0)
        )
        for name, law in {"uniform": None, "importance": Importance()}.items()
    }
    high, low = process.log_snr(torch.tensor([1e-5, 1.0], dtype=torch.float64))
    want = (high - low).item() / (1 - 1e-5)
    for loss in losses.values():
        assert loss.mean().item() == pytest.approx(want, abs=4.5 * loss.std().item() / 20_000**0.5)
    spread = losses["uniform"].std() / losses["importance"].std()
    assert spread > (0.99 if isinstance(process, VE) else 5)  # VE's uniform times are even in log-SNR already


def test_discrete_variational_weight_tends_to_the_continuous_one():
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    fine = DiscreteProcess(Linear(), 100_000).vlb_weight(t, "fixed_small")
    torch.testing.assert_close(fine, VP(Linear()).vlb_weight(t, "fixed_small"), rtol=1e-3, atol=0)


def test_weights_mix():
    process, t = DiscreteProcess(Linear()), torch.tensor([0.1, 0.9])
    both = DenoisingLoss(simple_weight=0.5, vlb_weight=0.1).weight(denoiser_of(process), t)
    torch.testing.assert_close(both, 0.5 + 0.1 * process.vlb_weight(t, "fixed_large").float())
    small = DenoisingLoss(simple_weight=0.0, vlb_weight=1.0, variance="fixed_small").weight(denoiser_of(process), t)
    torch.testing.assert_close(small, process.vlb_weight(t, "fixed_small").float())
    assert small[0] > 1.0005 * process.vlb_weight(t, "fixed_large")[0]


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 1.0), (2.0, 6.0)])
def test_network_inputs_are_rescaled_to_one_range_and_unit_scale(low, high):
    alpha, sigma = torch.tensor(0.8), torch.tensor(3.0)
    ends = torch.tensor([low, high]).reshape(1, 1, 1, 2)
    seen = Parameterization(low=low, high=high).network_input(ends, torch.tensor(1.0), sigma)
    torch.testing.assert_close(seen.flatten(), torch.tensor([-1.0, 1.0]))
    points = torch.tensor([[0.2, 5.0]])
    assert torch.equal(Parameterization(low=low, high=high).network_input(points, alpha, sigma), points)
    # Pixels of unit variance on the network's scale are so after the noise too.
    x = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(1))
    data = ((high - low) * x + (low + high)) / 2
    scaled = Parameterization(low=low, high=high, unit_input=True).network_input(
        alpha * data + sigma * noise, alpha, sigma
    )
    assert scaled.std().item() == pytest.approx(1, abs=0.02)


def test_a_network_in_bfloat16_is_conditioned_on_the_exact_level():
    seen = {}

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, x, c_noise):
            seen.update(x=x, c_noise=c_noise)
            return self.weight * x

    estimate = Denoiser(Half(), DiscreteProcess(Linear()), Parameterization())(torch.randn(3, 2), torch.tensor(0.999))
    assert seen["x"].dtype == torch.bfloat16 and estimate.eps.dtype == estimate.x0.dtype == torch.float32
    assert seen["c_noise"].tolist() == [998.0] * 3


def test_eps_mse_lower_bound_of_the_correlated_gaussian():
    """The exact denoiser attains the known minimum (reference/README)."""
    target = mixture.gauss64()
    denoiser = exact_denoiser(target, DiscreteProcess(Linear()))
    x0, _ = target.sample(8192, 0)
    loss = DenoisingLoss()(denoiser, x0, torch.Generator().manual_seed(0))
    assert loss.mean().item() == pytest.approx(0.089134, abs=4 * loss.std().item() / 8192**0.5)
    assert 4 * loss.std().item() / 8192**0.5 < 0.012


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"simple_weight": 0.0}, "not both be 0"),
        ({"vlb_weight": -1.0}, r"DenoisingLoss: vlb_weight=-1.0 must be in \[0, inf\)"),
        ({"gamma": 0.0}, r"DenoisingLoss: gamma=0.0 must be in \(0, inf\)"),
    ],
)
def test_invalid_weights_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenoisingLoss(**arguments)
    with pytest.raises(ValueError, match="low=1.0 must be less than high=0.0"):
        Parameterization(low=1.0, high=0.0)
    with pytest.raises(ValueError, match="output='noise' must be one of eps, x0, v"):
        Parameterization(output="noise")


EDM_ROW = Parameterization("edm", "quarter_log_sigma", unit_input=True, sigma_data=0.5)


def test_edm_is_preconditioned_as_published():
    """c_skip, c_out, c_in and c_noise of Karras et al. 2022, Table 1, and their weight lambda(sigma)."""
    process, sd = VE(Geometric(0.002, 80.0)), 0.5
    t = torch.tensor([0.05, 0.3, 0.6, 1.0], dtype=torch.float64)
    s = process.sigma(t)
    denoiser = Denoiser(lambda x, c: x, process, EDM_ROW)
    for got, at in zip(denoiser.preconditionings(t, torch.zeros(3, 1, 2, 2, dtype=torch.float64)), s, strict=True):
        torch.testing.assert_close(got.c_skip, sd**2 / (at**2 + sd**2), rtol=1e-11, atol=0)
        torch.testing.assert_close(got.c_out, at * sd / (at**2 + sd**2).sqrt(), rtol=1e-11, atol=0)
        torch.testing.assert_close(got.c_in, 1 / (at**2 + sd**2).sqrt(), rtol=1e-12, atol=0)
        torch.testing.assert_close(got.c_noise, (at.log() / 4).expand(3), rtol=1e-12, atol=1e-12)
    x0, eps, output = (torch.randn(4, 1, 2, 2, dtype=torch.float64) for _ in range(3))
    denoiser = Denoiser(lambda x, c: output, process, EDM_ROW)
    x, at = process.perturb(x0, t, eps), s[:, None, None, None]
    denoised = sd**2 / (at**2 + sd**2) * x + at * sd / (at**2 + sd**2).sqrt() * output
    published = (at**2 + sd**2) / (at * sd) ** 2 * (denoised - x0) ** 2
    loss = DenoisingLoss("output").at(denoiser, x0, t, eps)
    torch.testing.assert_close(loss, published.flatten(1).mean(1), rtol=1e-9, atol=0)


def test_edm_is_the_v_row_of_data_of_unit_variance():
    """F = -v in the variance-preserving process with the same sigma / alpha."""
    sigma = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)
    output, x = torch.randn(2, 5, dtype=torch.float64)
    alpha = (1 + (sigma / 0.5) ** 2).rsqrt()
    v_row = Parameterization("v").eps(-output, alpha * x / 0.5, alpha, sigma / 0.5 * alpha)
    torch.testing.assert_close(EDM_ROW.eps(output, x, torch.ones(()), sigma), v_row, rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", [Rectified(), Linear(), Cosine(), Geometric(0.01, 5.0)])
def test_flow_matching_of_any_schedule_is_the_diffusion_loss_with_its_weight(schedule):
    """|u_hat - u|^2 with u = alpha' x_0 + sigma' eps equals (sigma g^-2 f ...)-weighted |eps_hat - eps|^2."""
    process, t = ProbabilityPath(schedule), torch.linspace(0.02, 0.98, 6, dtype=torch.float64)
    x0, eps, eps_hat = (torch.randn(6, 3, dtype=torch.float64) for _ in range(3))
    denoiser = Denoiser(lambda x, c: eps_hat, process, Parameterization("eps", "nothing"))
    (alpha, sigma), f, g = process.marginal(t, x0), process.f(t)[:, None], process.g(t)[:, None]
    d = 1e-6
    rates = [(at(t + d) - at(t - d))[:, None] / (2 * d) for at in (process.alpha, process.sigma)]
    x = alpha * x0 + sigma * eps
    u = rates[0] * x0 + rates[1] * eps
    u_hat = f * x + g**2 / (2 * sigma) * eps_hat  # the probability flow
    torch.testing.assert_close(f * x + g**2 / (2 * sigma) * eps, u, rtol=1e-6, atol=1e-6)
    matched = (u_hat - (f * x + g**2 / (2 * sigma) * eps)).square().mean(1)
    weight = (process.g(t) ** 2 / (2 * process.sigma(t))) ** 2
    torch.testing.assert_close(weight * DenoisingLoss().at(denoiser, x0, t, eps), matched, rtol=1e-9, atol=0)
    torch.testing.assert_close(DenoisingLoss("velocity").at(denoiser, x0, t, eps), matched, rtol=1e-9, atol=0)
    if isinstance(schedule, Rectified):  # where alpha' = -1 and sigma' = 1 but for alpha_min, it is the error of u
        loss = DenoisingLoss("output").at(straight_with(lambda x, c: u_hat), x0, t, eps)
        torch.testing.assert_close(loss, matched, rtol=1e-3, atol=0)


@pytest.mark.parametrize("process", [VE(Geometric(0.002, 80.0)), VP(Linear()), ProbabilityPath(Rectified())])
@pytest.mark.parametrize("law", [LogNormal(-1.2, 1.2), LogitNormal(0.5, 0.8)])
def test_time_laws_are_normal_in_their_variable(process, law):
    t, weight = law.sample(process, 20_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    z = -process.log_snr(t.double()) / 2 if isinstance(law, LogNormal) else t.double().logit()
    inside = (t > process.t_train_min) & (t < 1)  # times beyond the process are moved to its ends
    assert weight.unique().tolist() == [1.0] and inside.float().mean() > 0.9
    quantiles = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    want = law.mean + law.std * torch.special.ndtri(quantiles)
    torch.testing.assert_close(z.quantile(quantiles), want, rtol=0, atol=0.04)


def test_logit_normal_times_of_straight_paths_are_log_normal():
    """log(sigma / alpha) = logit t for x = (1 - t) x_0 + t eps."""
    process, device = ProbabilityPath(Rectified()), torch.device("cpu")
    laws = [
        law.sample(process, 100, device, torch.Generator().manual_seed(0))[0]
        for law in (LogNormal(0.0, 1.0), LogitNormal())
    ]
    torch.testing.assert_close(*laws, rtol=1e-5, atol=1e-5)


def test_times_of_a_discrete_process_are_its_levels():
    t, _ = LogNormal().sample(DiscreteProcess(Linear(), 50), 100, torch.device("cpu"), None)
    torch.testing.assert_close(t * 50, (t * 50).round(), rtol=0, atol=1e-4)


def small_sets():
    """Two sets of six data points and six noises, in the plane and on images."""
    for seed, shape in ((0, (2,)), (1, (1, 2, 2))):
        generator = torch.Generator().manual_seed(seed)
        x0 = 2 * torch.randn(6, *shape, dtype=torch.float64, generator=generator).sign()
        yield x0 + 0.1 * seed, torch.randn(6, *shape, dtype=torch.float64, generator=generator)


def total_variance(targets):
    return targets.flatten(1).var(0, correction=0).sum().item()


def test_optimal_transport_lowers_the_variance_of_the_target():
    """Of all 720 assignments it gives eps - x_0 the least variance; independently paired noise has their mean."""
    for x0, eps in small_sets():
        coupled = optimal_transport(x0, eps)
        assert sorted(coupled.flatten(1).tolist()) == sorted(eps.flatten(1).tolist())
        every = [total_variance(eps[list(order)] - x0) for order in itertools.permutations(range(6))]
        independent = total_variance(eps) + total_variance(x0)
        assert sum(every) / 720 == pytest.approx(independent)
        assert total_variance(coupled - x0) == pytest.approx(min(every)) and min(every) < 0.8 * independent
        noised = DenoisingLoss("output", coupling="optimal_transport").draws(straight(), x0, None, eps)
        assert torch.equal(noised[0], eps)  # noise of a reflow is already paired


def straight_with(network):
    return Denoiser(network, ProbabilityPath(Rectified()), Parameterization("u", "time"))


def straight():
    return straight_with(lambda x, c: x)


def test_optimal_transport_stays_within_the_class():
    x0, eps = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([[11.0], [10.0], [0.0], [1.0]])
    label = torch.tensor([1, 0, 0, 1])
    assert optimal_transport(x0, eps).flatten().tolist() == [0.0, 1.0, 10.0, 11.0]
    assert optimal_transport(x0, eps, label).flatten().tolist() == [1.0, 0.0, 10.0, 11.0]
    loss, seen = DenoisingLoss("output", coupling="optimal_transport"), []
    bound = straight().given(label=label)
    bound.network = lambda x, c, label: seen.append(x) or x
    torch.manual_seed(0)
    for _ in range(20):
        loss.time_law = Constant(0.5)
        loss(bound, 100 * x0)
        noise = 2 * seen.pop() - 100 * x0
        assert noise[0] < noise[3] and noise[1] < noise[2]


def test_held_out_losses_of_a_coupled_loss_are_those_of_independent_noise():
    x0 = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    both = [DenoisingLoss("output", coupling=c) for c in ("independent", "optimal_transport")]
    held_out = [loss(straight(), x0, image_generators(0, range(8))) for loss in both]
    assert torch.equal(*held_out)
    training = []
    for loss in both:
        torch.manual_seed(0)
        training.append(loss(straight(), x0))
    assert not torch.equal(*training)


def test_given_noise_replaces_that_of_the_loss():
    x0, noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    loss = DenoisingLoss("output", time_law=Constant(0.25))
    want = ((0.75 + 0.25e-5) * x0 + 0.25 * noise - (noise - x0)).square().mean(1)
    torch.testing.assert_close(loss(straight(), x0, None, noise), want, rtol=1e-4, atol=1e-6)


def test_one_time_for_all():
    t, weight = Constant(0.3).sample(VP(Linear()), 4, torch.device("cpu"), None)
    assert torch.equal(t, torch.full((4,), 0.3)) and torch.equal(weight, torch.ones(4))
