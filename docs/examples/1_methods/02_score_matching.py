r"""
Score matching in four forms
============================

A network :math:`s_\theta` should equal the score of the data, :math:`s^* = \nabla \log
p`.  The *explicit* objective compares them, but nobody knows :math:`s^*`.  Three other
objectives need only samples, and differ from it by a constant:

.. math::

    J_\text{explicit} &= \tfrac12\, \mathbb E\, \lVert s_\theta(x) - s^*(x) \rVert^2 \\
    J_\text{implicit} &= \mathbb E \left[ \operatorname{tr} \nabla s_\theta(x) + \tfrac12 \lVert s_\theta(x) \rVert^2 \right] \\
    J_\text{sliced} &= \mathbb E_{x, v} \left[ v^\top \nabla s_\theta(x)\, v + \tfrac12 \lVert s_\theta(x) \rVert^2 \right] \\
    J_\text{denoising} &= \tfrac12\, \mathbb E \left\lVert s_\theta(x_0 + \sigma \epsilon) + \frac{\epsilon}{\sigma} \right\rVert^2

They are due to :cite:t:`hyvarinen2005`, :cite:t:`song2019ssm` and
:cite:t:`vincent2011`.  The last is for the data with noise :math:`\sigma`; here the
others are evaluated there, too.
"""

# %%
# One parameter shows it.  The data have modes of standard deviation 0.2; the model is
# the score of the same mixture with another one.  All four objectives, times
# :math:`\sigma^2` as in training, are measured on the same points.  Without their
# constants they coincide, and their minimum is at the truth.

from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from diffusion_lab.data.toy2d_density import two_modes
from diffusion_lab.loss import DenoisingLoss, ImplicitScoreMatching, SlicedScoreMatching
from diffusion_lab.process import SingleLevel
from diffusion_lab.verification import denoiser_of

data, process = two_modes(), SingleLevel(sigma=0.3)
x0 = data.sample(50_000, torch.Generator().manual_seed(0)).double()
exact = denoiser_of(data, process)


def explicit(denoiser, x0):
    """sigma^2 |s - s*|^2 / 2: only for data whose score is known."""
    one = torch.ones(len(x0))
    x = process.perturb(x0, one, torch.randn_like(x0))
    error = denoiser(x, one).score - exact(x, one).score
    return 0.5 * process.sigma(one) ** 2 * error.square().sum(1)


losses = {
    "explicit": explicit,
    "implicit": ImplicitScoreMatching(),
    "sliced": SlicedScoreMatching(),
    "denoising": DenoisingLoss(reduction="half_sum"),
}
deviations = torch.linspace(0.05, 0.5, 19).tolist()
figure, axis = plt.subplots(figsize=(8, 3.2))
for (name, loss), marker in zip(losses.items(), "o+x.", strict=True):
    values = []
    for deviation in deviations:
        torch.manual_seed(1)
        model = denoiser_of(replace(data, std=deviation), process)
        values.append(loss(model, x0).mean().item())
    above = torch.tensor(values) - values[6]
    axis.plot(
        deviations, above, marker, markersize=7, label=f"{name} - {values[6]:.2f}"
    )
axis.axvline(data.std, color="grey", linewidth=0.8)
axis.set(
    xlabel="standard deviation of the model's modes", ylabel="objective - constant"
)
axis.legend()

# %%
# They differ in cost and variance.  The trace costs one backward pass for each
# dimension of x, the sliced form one for each random v, the denoising form none: it is
# the one for images.  A small network, trained by each:

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.network import MLP
from diffusion_lab.parameterization import Parameterization


def train(loss, steps=500):
    """The relative error of the score, every 25 steps."""
    torch.manual_seed(0)
    network = MLP(dimensions=2, width=64, depth=2)
    model = Denoiser(network, process, Parameterization("scaled_score", "nothing"))
    optimizer, errors = torch.optim.Adam(network.parameters(), 2e-3), []
    one = torch.ones(5000)
    x = process.perturb(x0[:5000].float(), one, torch.randn(5000, 2))
    truth = exact(x, one).score
    for step in range(steps):
        batch = x0[torch.randint(len(x0), (256,))].float()
        optimizer.zero_grad()
        loss(model, batch).mean().backward()
        optimizer.step()
        if step % 25 == 24:
            with torch.no_grad():
                error = (
                    model(x, one).score - truth
                ).square().sum() / truth.square().sum()
            errors.append(error.sqrt().item())
    return errors


figure, axis = plt.subplots(figsize=(8, 3))
for name in ("implicit", "sliced", "denoising"):
    axis.plot(range(25, 501, 25), train(losses[name]), label=name)
axis.set(xlabel="training step", ylabel="relative error of the score", yscale="log")
axis.legend()

# %%
# On the command line: ``python train.py model=score data=toy2d loss=sliced``,
# ``implicit`` or ``dsm``.
