r"""
The variational bound against the likelihood
============================================

DDPM is trained as a chain of Gaussian steps.  Its likelihood has no closed form, but a
bound :cite:p:`ho2020`:

.. math::

    -\log p(x_0) \le {} & \underbrace{\mathrm{KL}(q(x_T | x_0) \,\|\, p(x_T))}_{\text{prior}}
    \underbrace{- \log p(x_0 | x_1)}_{\text{decoder}} \\
    & + \sum_{t > 1} \underbrace{\mathrm{KL}(q(x_{t-1} | x_t, x_0) \,\|\, p(x_{t-1} | x_t))}_{\text{steps}} .

Papers quote it beside the exact likelihood of the probability flow, although they
belong to two different models with the same network.  How far are they apart?  With the
exact score of a known density, the gap is not due to training.
"""

# %%
# The true negative log-likelihood of the data is known.  The bound exceeds it, because
# its reverse steps are Gaussians of a fixed variance: the posterior's
# (``fixed_small``), which is right for data at a single point, or that of the forward
# step (``fixed_large``), right for data N(0, I).  Near the data these modes look like
# the second, and more levels help little.  IDDPM learns the variance in between
# :cite:p:`nichol2021`.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.data.toy2d_density import two_modes
from diffusion_lab.likelihood import FlowLikelihood, VariationalBound
from diffusion_lab.process import Cosine, DiscreteProcess, Linear
from diffusion_lab.verification import denoiser_of

data = two_modes()
x0 = data.sample(1000, torch.Generator().manual_seed(0)).double()
truth = -data.log_density(x0).mean().item()


def bound(schedule, levels, variance):
    denoiser = denoiser_of(data, DiscreteProcess(schedule, levels))
    result = VariationalBound(variance)(
        denoiser, x0, None, torch.Generator().manual_seed(1)
    )
    return {name: term.mean().item() for name, term in result.terms.items()}


levels = (25, 50, 100, 200, 400)
gaps = {
    (name, variance): [
        sum(bound(schedule, n, variance).values()) - truth for n in levels
    ]
    for name, schedule in {"linear": Linear(), "cosine": Cosine()}.items()
    for variance in ("fixed_small", "fixed_large")
}
figure, axis = plt.subplots(figsize=(8, 3.2))
for (name, variance), gap in gaps.items():
    style = "-" if variance == "fixed_small" else "--"
    axis.plot(
        levels,
        gap,
        style,
        color="C0" if name == "linear" else "C1",
        marker="o",
        label=f"{name}, {variance}",
    )
axis.set(xscale="log", yscale="log", xlabel="levels T", ylabel="bound - truth, nats")
axis.set(xticks=levels, xticklabels=levels)
axis.minorticks_off()
axis.legend()

# %%
# The flow of the same network has no gap, only the tolerance of its solver.

process = DiscreteProcess(Linear(), 1000)
flow = FlowLikelihood(probe="exact")(denoiser_of(data, process), x0[:500].float(), None)
difference = -flow.log_likelihood.double() + data.log_density(x0[:500])
print(f"truth {truth:.3f} nats; flow - truth on 500 points {difference.mean():+.1e}")

# %%
# Where the bound comes from: one term for each level.  Almost all of the sum is at low
# noise, which hardly changes how a sample looks.  That is why the best likelihoods and
# the best images need different weights of the loss.

from diffusion_lab.likelihood.terms import step_kl

figure, axis = plt.subplots(figsize=(8, 3))
for name, schedule in {"linear": Linear(), "cosine": Cosine()}.items():
    process = DiscreteProcess(schedule, 1000)
    denoiser, terms = denoiser_of(data, process), []
    for level in range(2, 1001, 6):
        t = torch.full((len(x0),), level / 1000, dtype=torch.float64)
        torch.manual_seed(level)
        estimate = denoiser(process.perturb(x0, t, torch.randn_like(x0)), t)
        terms.append(step_kl(process, t, x0, estimate.x0, "fixed_small").mean())
    axis.plot(torch.arange(2, 1001, 6) / 1000, terms, label=name)
axis.set(xlabel="t", ylabel="term of the bound, nats", yscale="log")
axis.legend()

# %%
# ``likelihood=both`` evaluates both on the held-out data of a run.
