r"""
Flow matching, straight paths and optimal transport
===================================================

Flow matching :cite:p:`lipman2023,liu2023` interpolates data and noise linearly, and
trains a velocity:

.. math:: x_t = (1 - t)\, x_0 + t\, \epsilon, \qquad u(x_t, t) \approx \epsilon - x_0 .

It is a diffusion model with another schedule: :math:`\alpha = 1 - t`, :math:`\sigma =
t`, and another output of the network.  So every sampler and likelihood of this library
applies.  What is new is the choice of pairs :math:`(x_0, \epsilon)`.
"""

# %%
# Three trainings of the same network: noise and data paired at random; paired by
# optimal transport in each batch :cite:p:`tong2024,pooladian2023`; and *reflow*
# :cite:p:`liu2023`, paired by the paths of the first model.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.data.toy2d_density import eight_gaussians
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.network import MLP
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import ProbabilityPath, Rectified
from diffusion_lab.sampler import DDIM, ProbabilityFlow, Sampler

data, process = eight_gaussians(), ProbabilityPath(Rectified())
points = data.sample(6000, torch.Generator().manual_seed(0))
row = Parameterization("u", "time_999", bounded=False)


def train(draw_loss, steps=700):
    torch.manual_seed(0)
    denoiser = Denoiser(MLP(dimensions=2, width=64, depth=3), process, row)
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        draw_loss(denoiser, torch.randint(6000, (256,))).mean().backward()
        optimizer.step()
        decay.step()
    return denoiser.requires_grad_(False)


independent = DenoisingLoss("output")
coupled = DenoisingLoss("output", coupling="optimal_transport")
models = {
    "random pairs": train(lambda model, i: independent(model, points[i])),
    "optimal transport": train(lambda model, i: coupled(model, points[i])),
}

# %%
# For reflow, the paths of the first model are solved once, from noise to data; then the
# loss takes these pairs.

flow = ProbabilityFlow(1e-4, 1e-4, denoise=False)
noise = torch.randn(6000, 2, generator=torch.Generator().manual_seed(1))
(ends,) = flow.solve(models["random pairs"], noise, [1.0, process.t_train_min])


def reflow(model, i):
    t = torch.rand(len(i)).clamp(min=1e-3)
    return independent.at(model, ends[i], t, noise[i])


models["reflow"] = train(reflow)

# %%
# Paths from the same forty noises.  Paths of a flow cannot cross, so random pairs give
# curved ones; better pairs give straight ones, and few steps suffice.

figure, axes = plt.subplots(1, 3, figsize=(8, 2.9), sharex=True, sharey=True)
start, times = noise[:40], torch.linspace(1, process.t_train_min, 30).tolist()
for axis, (name, model) in zip(axes, models.items(), strict=True):
    path = torch.stack([start, *flow.solve(model, start, times)])
    length = (path[1:] - path[:-1]).norm(dim=2).sum(0)
    excess = length.sum() / (path[-1] - path[0]).norm(dim=1).sum() - 1
    axis.plot(path[..., 0], path[..., 1], color="tab:blue", linewidth=0.7)
    axis.scatter(*path[-1].T, s=8, color="tab:orange", zorder=3)
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.set_title(f"{name}\nlonger than straight by {100 * excess:.0f} %", fontsize=9)

# %%
# The distance of samples to the data, against Euler steps (DDIM is Euler's method in
# :math:`\sigma / \alpha`; on straight paths both are exact).

from diffusion_lab.metric import energy_distance

figure, axis = plt.subplots(figsize=(8, 3))
budgets = (1, 2, 4, 8, 16, 32)
for name, model in models.items():
    values = []
    for steps in budgets:
        settings = {"steps": steps, "spacing": "trailing", "t_start": 0.999}
        sampler = Sampler(DDIM(), **settings)
        x = sampler(model, (2000, 2), torch.Generator().manual_seed(2))
        values.append(energy_distance(x, points[:2000]))
    axis.plot(budgets, values, marker="o", label=name)
axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="energy distance")
axis.set(xticks=budgets, xticklabels=budgets)
axis.minorticks_off()
axis.legend()

# %%
# ``python train.py model=flow`` trains on digits, ``loss.coupling=optimal_transport``
# couples, and ``data.pairs=DIRECTORY`` reflows.
