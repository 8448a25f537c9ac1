"""The probability-flow ODE, its divergence and its solver, as sampler and as likelihood, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.flow import FlowTime, Velocity, divergence, probe_vectors, solve
from diffusion_lab.likelihood import FlowLikelihood, bits_per_dim, dequantize
from diffusion_lab.noise import draw, image_generators
from diffusion_lab.parameterization import Parameterization
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
from diffusion_lab.sampler.ode import ProbabilityFlow
from diffusion_lab.verification import mixture
from diffusion_lab.verification.mixture import ExactNetwork, exact_denoiser

PROCESSES = {
    "ve": VE(Geometric(0.01, 50.0)),
    "vp": VP(Linear()),
    "subvp": SubVP(Linear()),
    "discrete": DiscreteProcess(Linear(), 1000),
    "flow": ProbabilityPath(Rectified()),
}
SDES = ["ve", "vp", "subvp", "flow"]
FLOW_TIMES = [
    *PROCESSES.values(),
    VP(Cosine()),
    VP(Sigmoid()),
    SubVP(Cosine()),
    DiscreteProcess(Geometric(0.01, 50.0), 10),
]
FLOW_TIMES += [
    DiscreteProcess(Cosine(), 4000),
    DiscreteProcess(Sigmoid(), 1000),
]  # of which u doubles in the last level


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors are tiny here, so a second thread only costs time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flowed(target, process, x, t0, t1):
    """x at t1 on the probability flow of a Gaussian target through x at t0, and log |det dx(t1)/dx(t0)|.

    Along an eigenvector of the covariance, with v_t = alpha_t^2 lam + sigma_t^2, x_t - alpha_t m grows as sqrt(v_t).
    """
    t = torch.tensor([t0, t1], dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    v = alpha[:, None] ** 2 * target.eigenvalues[0] + sigma[:, None] ** 2
    y = (x.double().flatten(1) - alpha[0] * target.m[0]) @ target.eigenvectors[0] * (v[1] / v[0]).sqrt()
    return (y @ target.eigenvectors[0].T + alpha[1] * target.m[0]).reshape(x.shape), 0.5 * (v[1] / v[0]).log().sum()


def reparameterized(denoiser, row):
    """The same estimates by a network with another parameterization."""
    meaning, process = Parameterization(**{**vars(denoiser.parameterization), **row}), denoiser.process

    def network(seen, c_noise):
        eps = denoiser.network(seen, c_noise)
        t = ((c_noise.double() + 1) / process.levels if process.levels else c_noise.double() / 999)[:, None, None, None]
        alpha, sigma = process.alpha(t), process.sigma(t)
        x0 = (seen - sigma * eps) / alpha
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "u": eps - x0, "score": -eps / sigma}[
            meaning.output
        ]

    return Denoiser(network, process, meaning)


# ---------------------------------------------------------------------------------------------- velocity, divergence


@pytest.mark.parametrize("process", FLOW_TIMES, ids=repr)
def test_flow_time_is_asinh_of_sigma_over_alpha_and_is_inverted(process):
    first = process.t_train_min
    flow_time, t = FlowTime(process, first, 1.0), first ** torch.linspace(1, 0, 999).double()
    t = torch.cat([t, 1 - (1 - first) * 0.01 * torch.linspace(1, 0, 999).double()])
    u = flow_time.of(t)
    torch.testing.assert_close(u.sinh(), process.sigma(t) / process.alpha(t), rtol=1e-12, atol=0)
    torch.testing.assert_close(flow_time.time(u), t, rtol=1e-9, atol=0)
    assert flow_time.time(u).min() >= process.t_train_min and flow_time.time(u).max() <= 1


def slope_at(denoiser, z, t, vectors=None):
    """The slope of the flow at time t, and the scale r there."""
    flow = Velocity(denoiser, t, 1.0, z, vectors)
    (slope,) = flow(flow.flow_time.of(torch.tensor([t], dtype=torch.float64)).tolist())
    return slope, flow.scale(torch.tensor(t, dtype=torch.float64))


@pytest.mark.parametrize("row", [{}, {"output": "v"}, {"output": "x0"}, {"output": "u"}, {"output": "score"}], ids=str)
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("t", [0.0123, 0.4, 0.97])
def test_velocity_is_the_derivative_of_the_exact_flow(name, t, row):
    """In the time u, for z = x / r and any parameterization."""
    target, process = mixture.gauss64(), PROCESSES[name]
    x, h = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=seeded(0)), 1e-4 * t
    flow = Velocity(exact_denoiser(target, process), 1e-3, 1.0, x)
    around = torch.tensor([t - h, t + h], dtype=torch.float64)
    ends = [flowed(target, process, x, t, s)[0] / flow.scale(around)[k] for k, s in enumerate(around.tolist())]
    want = (ends[1] - ends[0]) / flow.flow_time.of(around).diff()
    denoiser = reparameterized(exact_denoiser(target, process), row)
    slope, r = slope_at(denoiser, x, t)
    torch.testing.assert_close(slope(x / r, True)[0], want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    assert denoiser.nfe == 1


@pytest.mark.parametrize("make", [mixture.gmm2d, mixture.gauss64])
def test_exact_trace_is_the_trace_of_the_jacobian(make):
    target, process = make(), PROCESSES["ve"]
    denoiser = exact_denoiser(target, process)
    z = target.sample(5, 0)[0]
    slope, _ = slope_at(denoiser, z, 0.6, probe_vectors(z, "exact", 1))
    speed, bits = slope(z, True)
    trace = bits * target.dim * math.log(2)
    for i in range(5):
        alone, _ = slope_at(denoiser, z[i : i + 1], 0.6)
        jacobian = torch.func.jacrev(lambda y: alone_of(denoiser, y, 0.6))(z[i : i + 1])
        torch.testing.assert_close(alone(z[i : i + 1], True)[0], speed[i : i + 1])
        assert trace[i].item() == pytest.approx(jacobian.reshape(target.dim, -1).trace().item(), rel=1e-10)
    assert not (speed.requires_grad or bits.requires_grad)
    assert slope(z, False)[1] is None


def alone_of(denoiser, z, t):
    """eps - sigma x / r^2 from the denoiser's estimate at x = r z."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = denoiser.process.alpha(time), denoiser.process.sigma(time)
    r = (alpha**2 + sigma**2).sqrt()
    return denoiser(r * z, time).eps - sigma / r * z


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_has_its_variance(probe):
    """Variance 2 |J|_F^2 / k for Gaussian vectors; for Rademacher vectors without the diagonal (J is symmetric)."""
    target, process, n = mixture.gauss64(), PROCESSES["vp"], 4000
    denoiser = exact_denoiser(target, process)
    z = target.sample(1, 0)[0]
    jacobian = torch.func.jacrev(lambda y: alone_of(denoiser, y, 0.3))(z).reshape(64, 64)
    off = jacobian - torch.diag(jacobian.diag()) if probe == "rademacher" else jacobian
    z = z.expand(n, -1, -1, -1)
    for k in (1, 4, 16):
        vectors = probe_vectors(z, probe, k, seeded(k))
        got = slope_at(denoiser, z, 0.3, vectors)[0](z, True)[1] * 64 * math.log(2)
        want = (2 * off.square().sum() / k).sqrt().item()
        assert got.std().item() == pytest.approx(want, rel=0.06)  # 4.5 standard errors, tails included
        assert got.mean().item() == pytest.approx(jacobian.trace().item(), abs=4.5 * want / n**0.5)
    if probe == "rademacher":
        torch.testing.assert_close(vectors.abs(), torch.full_like(vectors, 0.25))


def test_divergence_of_a_known_field():
    z = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    got = divergence(z**3, z, probe_vectors(z.detach(), "exact", 1))
    torch.testing.assert_close(got, 3 * z.detach().square().flatten(1).sum(1))


def test_the_velocity_is_zero_for_data_of_unit_variance():
    """In the time u the flow of N(0, I) is z = constant."""
    target = mixture.Mixture([1.0], [[0.0] * 4], [torch.eye(4).tolist()], (1, 2, 2))
    for process in PROCESSES.values():
        denoiser, x = exact_denoiser(target, process), target.sample(3, 0)[0].double()
        ((end, change),) = solve(denoiser, x, (0.01, 1.0), 1e-6, 1e-6, vectors=probe_vectors(x, "exact", 1))
        times = torch.tensor([0.01, 1.0], dtype=torch.float64)
        r = (process.alpha(times) ** 2 + process.sigma(times) ** 2).sqrt()
        torch.testing.assert_close(end, x * r[1] / r[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(change, torch.full_like(change, 4 * (r[1] / r[0]).log().item()), rtol=0, atol=1e-9)
        assert denoiser.nfe <= 32  # the first step is a thousandth of the way, as nothing is known of its error


def test_probe_vectors_of_an_image_depend_on_its_generator_alone():
    x = torch.zeros(6, 1, 8, 8, dtype=torch.float64)
    every = probe_vectors(x, "rademacher", 3, image_generators(0, range(6)))
    some = probe_vectors(x[:2], "rademacher", 3, image_generators(0, [4, 1]))
    assert torch.equal(some, every[:, [4, 1]])
    assert not torch.equal(every[0], every[1]) and not torch.equal(every[:, 0], every[:, 1])


def test_a_flow_that_cannot_be_solved_reports_where_and_a_remedy():
    process = PROCESSES["vp"]
    for network, why in (
        (
            lambda x, c_noise: x * math.nan,
            r"near t = 1e-05: the slope is nan; loosen .* or check the network's output for NaN",
        ),
        (
            lambda x, c_noise: torch.where(c_noise < 200, x, math.nan)[..., :2],
            r"near t = 0\.200\d*: the step size underflows",
        ),
    ):
        denoiser = Denoiser(network, process, Parameterization(c_noise="time_999"))
        with pytest.raises(RuntimeError, match=r"the ODE solver \(bs5, rtol=1e-05, atol=1e-05\) failed " + why):
            FlowLikelihood(precision="float64")(denoiser, torch.ones(2, 2), None, seeded(0))


# -------------------------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    "name, published, close", [("ve", 122, 1e-4), ("vp", 56, 1e-4), ("subvp", 68, 1e-4), ("discrete", 56, 5e-4),
     ("flow", 68, 1e-4)],
)  # fmt: skip
def test_likelihood_of_an_image_is_the_exact_one(name, published, close, precision):
    """With a diagonal covariance one random sign vector gives the trace exactly; NFE are those of SciPy's RK45.

    A discrete process is less smooth in time, so the solver's error is larger; and the data are at its first level.
    """
    target, process = mixture.diag64(), PROCESSES[name]
    denoiser = exact_denoiser(target, process)
    x0 = target.sample(64, 0)[0]
    denoiser.nfe = 3
    got = FlowLikelihood(precision=precision)(denoiser, x0, None, seeded(0))
    z, change = flowed(target, process, x0, process.t_train_min, 1.0)
    prior = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), process.prior_std)
    want = {"prior": -prior.log_prob(z).flatten(1).sum(1), "volume": -change.expand(64), "bins": torch.zeros(64)}
    for term, nats in got.terms.items():
        assert bits_per_dim(nats - want.pop(term), 64).abs().max().item() < close, term
    assert not want
    error = (bits_per_dim(got.log_likelihood, 64) - bits_per_dim(target.log_density(x0), 64)).mean().abs().item()
    print(f"{name} {precision}: NFE {got.nfe} (published {published}), bits/dim error {error:.1e}")
    if name != "discrete":
        assert error < 2e-4
    assert got.nfe == denoiser.nfe - 3 <= 1.5 * published
    torch.testing.assert_close(sum(got.terms.values()), -got.log_likelihood)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("name", SDES)
def test_the_tolerance_is_the_error_in_bits_per_dimension(name, tolerance):
    """Gaussian images, whose trace one sign vector gives exactly: the error of each is about the tolerance or less, at any."""
    target, process = mixture.diag64(), PROCESSES[name]
    x0 = target.sample(8, 0)[0]
    likelihood = FlowLikelihood(tolerance, tolerance, precision="float64")
    got = likelihood(exact_denoiser(target, process), x0, None, seeded(0)).log_likelihood
    z, change = flowed(target, process, x0, process.t_train_min, 1.0)
    prior = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), process.prior_std)
    want = prior.log_prob(z).flatten(1).sum(1) + change
    assert bits_per_dim(got - want, 64).abs().max().item() < 1.5 * tolerance


@pytest.mark.parametrize("name", SDES)
def test_density_of_points_by_the_exact_trace(name):
    target, process = mixture.gmm2d(), PROCESSES[name]
    x0 = target.sample(100, 0)[0]
    likelihood = FlowLikelihood(rtol=1e-6, atol=1e-6, probe="exact", t_min=0.02)
    got = likelihood(exact_denoiser(target, process), x0, None).log_likelihood
    t = torch.tensor(0.02, dtype=torch.float64)
    want = target.log_density(x0, process.alpha(t), process.sigma(t))
    assert (got - want).abs().max().item() < 0.02  # x_1 is not quite N(0, prior_std^2)
    assert (got - want).mean().abs().item() < 1e-3


def test_density_of_points_integrates_to_one():
    target, process = mixture.gmm2d(), PROCESSES["subvp"]
    sides = torch.arange(-2.1, 2.7, 0.15, dtype=torch.float64), torch.arange(-1.7, 2.8, 0.15, dtype=torch.float64)
    x0 = torch.cartesian_prod(*sides).reshape(-1, 2, 1, 1)
    got = FlowLikelihood(1e-4, 1e-4, probe="exact", t_min=0.01)(
        exact_denoiser(target, process), x0, None
    ).log_likelihood
    assert (got.exp().sum() * 0.15**2).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("probe, probes", [("rademacher", 1), ("gaussian", 2)])
def test_estimated_likelihood_is_unbiased(probe, probes):
    target, process, n = mixture.gauss64(), PROCESSES["vp"], 300
    denoiser, x0 = exact_denoiser(target, process), target.sample(1, 0)[0]
    exact = FlowLikelihood(probe="exact")(denoiser, x0, None).log_likelihood.item()
    copies = x0.expand(n, -1, -1, -1)
    got = FlowLikelihood(probe=probe, probes=probes)(denoiser, copies, None, seeded(1)).log_likelihood
    assert got.std().item() > 1  # else there is nothing to average
    assert got.mean().item() == pytest.approx(exact, abs=4 * got.std().item() / n**0.5)


def ranged(target, process, low, high):
    """The exact denoiser of images in [low, high], with network inputs in [-1, 1]."""
    exact = ExactNetwork(target, process)

    def network(seen, c_noise):
        return exact(low + (high - low) * (seen + 1) / 2, c_noise)

    return Denoiser(network, process, Parameterization(c_noise="time_999", low=low, high=high))


@pytest.mark.parametrize(
    "low, high, levels, offset", [(-1.0, 1.0, 256, 7.0), (0.0, 1.0, 256, 8.0), (-1.0, 1.0, 17, math.log2(17) - 1)]
)
def test_offset_follows_from_the_range_and_the_levels(low, high, levels, offset):
    target, process = mixture.diag64(), PROCESSES["vp"]
    level = torch.randint(levels, (5, 1, 8, 8), generator=seeded(0)).double()
    x0 = low + (high - low) * level / (levels - 1)
    got = FlowLikelihood()(ranged(target, process, low, high), x0, levels, seeded(7))
    torch.testing.assert_close(bits_per_dim(-got.terms["bins"], 64), torch.full((5,), offset))
    u = torch.special.ndtr(draw(x0.shape, seeded(7), torch.float64))
    official = low + (high - low) * (u + (levels - 1) * (level / (levels - 1))) / levels
    want = FlowLikelihood()(exact_denoiser(target, process), official, None, seeded(8)).log_likelihood
    torch.testing.assert_close(got.log_likelihood + got.terms["bins"], want, rtol=0, atol=1e-3)


def test_dequantization_is_uniform_in_each_bin():
    level = torch.arange(17, dtype=torch.float64).repeat_interleave(2000)
    x = dequantize(level / 16, 0.0, 1.0, 17, seeded(0))
    assert torch.equal((x * 17).floor(), level)
    u = (x * 17 - level).reshape(17, 2000)
    for power in (1, 2):
        assert (u**power).mean().item() == pytest.approx(1 / (power + 1), abs=0.01)
    assert u.mean(1).sub(0.5).abs().max().item() < 0.03


def test_dequantized_probabilities_sum_to_no_more_than_one_and_approach_it():
    """sum_k exp E_u log p(k) <= sum_k P(k) <= 1 (Theis et al. 2016, Eq. 10), with equality for fine levels."""
    target = mixture.Mixture([0.4, 0.6], [[-0.3], [0.25]], [[[0.01]], [[0.02]]], (1, 1, 1))
    denoiser, totals = exact_denoiser(target, PROCESSES["subvp"]), {}
    for levels in (4, 16, 64):
        x0 = torch.linspace(-1, 1, levels, dtype=torch.float64).repeat_interleave(400).reshape(-1, 1, 1, 1)
        nats = FlowLikelihood(probe="exact")(denoiser, x0, levels, seeded(levels)).log_likelihood
        totals[levels] = nats.reshape(levels, 400).mean(1).exp().sum().item()
        whole = nats.reshape(levels, 400).exp().mean(1).sum().item()  # without the logarithm it is the mass itself
        assert whole == pytest.approx(1, abs=0.06 if levels == 4 else 0.02)
    assert totals[4] < totals[16] < totals[64] < 1.002
    assert totals[4] < 0.9 and totals[64] > 0.99


def test_several_dequantizations_are_averaged_inside_the_logarithm():
    """log 1/K sum_k p(x + u_k) of Gaussian data in closed form; its terms add up, and are those of one draw for K = 1."""
    target, process, levels = mixture.diag64(), PROCESSES["flow"], 17
    x0 = torch.randint(levels, (4, 1, 8, 8), generator=seeded(0)).double() / (levels - 1) * 2 - 1
    x0, denoiser, found = 0.2 * x0, ranged(target, process, -1.0, 1.0), {}
    for count in (1, 3):
        found[count] = FlowLikelihood(precision="float64", dequantizations=count)(denoiser, x0, levels, seeded(7))
        generator, log_density = seeded(7), []
        for _ in range(count):
            x = dequantize(x0, -1.0, 1.0, levels, generator)
            probe_vectors(x, "rademacher", 1, generator)
            log_density.append(target.log_density(x))
        want = torch.stack(log_density).logsumexp(0) - math.log(count) + 64 * math.log(2 / levels)
        error = bits_per_dim(found[count].log_likelihood - want, 64).abs().max().item()
        assert error < 2e-4, count
        torch.testing.assert_close(sum(found[count].terms.values()), -found[count].log_likelihood)
    assert found[1].terms["bins"].unique().tolist() == [-64 * math.log(2 / levels)]
    assert bits_per_dim(found[1].log_likelihood - found[3].log_likelihood, 64).abs().min() > 1e-3
    with pytest.raises(ValueError, match="dequantizations=3 is for images with grey levels"):
        FlowLikelihood(dequantizations=3)(denoiser, x0, None)


def test_more_dequantizations_approach_the_probability_of_a_level():
    target = mixture.Mixture([0.4, 0.6], [[-0.3], [0.25]], [[[0.01]], [[0.02]]], (1, 1, 1))
    denoiser, x0 = exact_denoiser(target, PROCESSES["flow"]), torch.linspace(-1, 1, 4).double().repeat_interleave(200)
    totals = []
    for count in (1, 4, 16):
        likelihood = FlowLikelihood(probe="exact", rtol=1e-3, atol=1e-3, dequantizations=count)
        nats = likelihood(denoiser, x0.reshape(-1, 1, 1, 1), 4, seeded(count)).log_likelihood
        totals.append(nats.reshape(4, 200).mean(1).exp().sum().item())
    assert totals[0] < totals[1] < totals[2] < 1.02 and totals[2] > 0.95


def test_likelihood_of_an_image_does_not_depend_on_its_batch():
    target, process = mixture.gauss64(), PROCESSES["vp"]
    x0 = target.sample(6, 0)[0].clamp(-1, 1)
    x0[0] *= 30  # a hard neighbour changes the steps, not the result

    def nats(indices):
        generators = image_generators(0, indices)
        return FlowLikelihood()(exact_denoiser(target, process), x0[indices], 17, generators).log_likelihood

    difference = nats([4, 1]) - nats(list(range(6)))[[4, 1]]
    assert bits_per_dim(difference, 64).abs().max().item() < 1e-4


class Scaled(torch.nn.Module):
    """eps_hat = w x: a network with a weight, whose linear flow is known."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5, dtype=dtype))

    def forward(self, x, c_noise):
        assert x.dtype == self.weight.dtype
        return self.weight * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_network_in_another_precision_in_any_gradient_mode(dtype, precision, mode):
    """VE with eps_hat = x/2: d log x / dt = (log sigma)' sigma / 2, so x grows by exp((sigma_1 - sigma_0) / 2)."""
    process = VE(Geometric(0.01, 2.0))
    denoiser = Denoiser(Scaled(dtype), process, Parameterization(c_noise="time_999"))
    with mode():
        x0 = torch.randn(4, 1, 2, 2, generator=seeded(0))
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
        got = FlowLikelihood(tolerance, tolerance, precision=precision)(denoiser, x0, None, seeded(0))
    z0 = x0.clone().to(got.prior.dtype)
    growth = (process.sigma(torch.tensor(1.0)) - process.sigma(torch.tensor(process.t_train_min))).item() / 2
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(got.terms["volume"], torch.full((4,), -4 * growth).to(z0), rtol=tolerance, atol=0)
    z = z0 * math.exp(growth)
    want = (z / 2).square().flatten(1).sum(1) / 2 + 4 * math.log(2 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(got.terms["prior"], want, rtol=2 * tolerance, atol=0)
    assert denoiser.network.weight.grad is None
    assert not any(term.requires_grad for term in got.terms.values())


def test_invalid_numbers_are_refused():
    with pytest.raises(ValueError, match=r"FlowLikelihood: rtol=0 must be in \(0, inf\)"):
        FlowLikelihood(rtol=0)
    with pytest.raises(ValueError, match=r"ProbabilityFlow: atol=-1 must be in \(0, inf\)"):
        ProbabilityFlow(atol=-1)
    with pytest.raises(ValueError, match=r"t_min=0 must be in \(0, 1\)"):
        FlowLikelihood(t_min=0)
    with pytest.raises(ValueError, match="probes=0 must be at least 1"):
        FlowLikelihood(probes=0)
    with pytest.raises(ValueError, match="probes must be 1 with probe=exact, got 2"):
        FlowLikelihood(probe="exact", probes=2)
    still = Denoiser(lambda x, c_noise: x, SingleLevel(0.1), Parameterization(c_noise="nothing"))
    for refused in (
        lambda: FlowLikelihood()(still, torch.zeros(1, 2), None),
        lambda: ProbabilityFlow()(still, (1, 2)),
        lambda: ProbabilityFlow().check(still),
    ):
        with pytest.raises(ValueError, match="more than one noise level"):
            refused()
    with pytest.raises(ValueError, match="frames=0 must be at least 1"):
        ProbabilityFlow(frames=0)


# ----------------------------------------------------------------------------------------------------------- sampler


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", SDES)
def test_probability_flow_maps_the_prior_to_the_exact_gaussian_law(name, precision):
    """The flow of a Gaussian is affine, so its images of 0 and of the unit vectors are the law: mean and covariance."""
    target, process = mixture.gauss64(), PROCESSES[name]
    sampler, denoiser = ProbabilityFlow(denoise=False, precision=precision), exact_denoiser(target, process)
    starts = process.prior_std * torch.cat([torch.zeros(1, 64), torch.eye(64)]).reshape(65, 1, 8, 8)
    *_, end = sampler.trajectory(denoiser, starts.to(sampler.dtype))
    assert end.t == process.t_min and end.x.dtype == sampler.dtype
    want = flowed(target, process, starts, 1.0, process.t_min)[0]
    torch.testing.assert_close(end.x.double(), want, rtol=0, atol=1e-3)
    mean = end.x[0].double().flatten()
    root = (end.x[1:].double() - end.x[0].double()).reshape(64, 64)
    t = torch.tensor(process.t_min, dtype=torch.float64)
    law = process.alpha(t) ** 2 * target.c[0] + process.sigma(t) ** 2 * torch.eye(64, dtype=torch.float64)
    # Not closer, since the prior leaves out the mean alpha_1 m and the variance that the data still have at t = 1.
    torch.testing.assert_close(mean, process.alpha(t) * target.m[0], rtol=0, atol=0.01)
    torch.testing.assert_close(root.T @ root, law, rtol=0, atol=0.003)


@pytest.mark.parametrize("name", SDES)
def test_probability_flow_is_invertible(name):
    target, process = mixture.gmm2d(), PROCESSES[name]
    sampler, denoiser = ProbabilityFlow(rtol=1e-8, atol=1e-8, precision="float64"), exact_denoiser(target, process)
    x = target.sample(50, 0)[0]
    (z,) = sampler.solve(denoiser, x, (process.t_min, 1.0))
    (back,) = sampler.solve(denoiser, z, (1.0, process.t_min))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)
    assert z.std().item() == pytest.approx(process.prior_std, rel=0.25)


def test_samples_agree_with_the_end_of_the_trajectory():
    target, process = mixture.gauss64(), PROCESSES["vp"]
    denoiser, generators = exact_denoiser(target, process), lambda: image_generators(3, range(5))
    plain, sampler = ProbabilityFlow(denoise=False), ProbabilityFlow(frames=4)
    x = plain(denoiser, (5, 1, 8, 8), generators())
    z = process.prior_std * draw((5, 1, 8, 8), generators(), torch.float32)
    torch.testing.assert_close(x.double(), flowed(target, process, z, 1.0, process.t_min)[0], rtol=0, atol=3e-4)
    straight, denoiser.nfe = denoiser.nfe, 0
    t = torch.tensor(process.t_min, dtype=torch.float64)
    clean = sampler(denoiser, (5, 1, 8, 8), generators())
    assert denoiser.nfe == straight + 1
    torch.testing.assert_close(clean, target.denoise(x, process.alpha(t), process.sigma(t)), rtol=1e-4, atol=1e-5)
    states = list(sampler.trajectory(denoiser, z))
    assert [s.t for s in states] == pytest.approx([0.75 + 0.25e-3, 0.5 + 0.5e-3, 0.25 + 0.75e-3, 1e-3, 0])
    for state in states[:-1]:
        want = flowed(target, process, z, 1.0, state.t)[0]
        torch.testing.assert_close(state.x.double(), want, rtol=0, atol=3e-4)
        t = torch.tensor(state.t, dtype=torch.float64)
        x0 = target.denoise(state.x, process.alpha(t), process.sigma(t))
        torch.testing.assert_close(state.x0, x0, rtol=1e-4, atol=1e-4)
    assert torch.equal(states[-1].x, states[-2].x0)
    torch.testing.assert_close(states[-1].x, clean, rtol=0, atol=1e-3)


def test_a_sample_of_the_flow_does_not_depend_on_its_batch():
    target, process = mixture.gmm2d(), PROCESSES["ve"]

    def sample(indices):
        denoiser = exact_denoiser(target, process)
        return ProbabilityFlow()(denoiser, (len(indices), 2, 1, 1), image_generators(0, indices))

    torch.testing.assert_close(sample([4, 1]), sample(list(range(6)))[[4, 1]], rtol=0, atol=2e-3)
