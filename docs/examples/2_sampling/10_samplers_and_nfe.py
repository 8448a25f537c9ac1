r"""
Samplers against network evaluations
====================================

A sampler is a numerical method, and its cost is the number of network evaluations
(NFE).  Deterministic samplers solve the probability flow, so their error is the
distance to its exact end from the same noise.  A method of order p has an error in
proportion to :math:`h^p`.  In :math:`\log(\alpha/\sigma)`, exponential integrators such
as DPM-Solver++ :cite:p:`lu2022b` solve the linear part of the equation exactly.
"""

# %%
# The error of each sampler on a mixture with exact score, against NFE.  The slopes are
# the orders; to the left, where images are made, the best method is not the one of
# highest order.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.data.toy2d_density import eight_gaussians
from diffusion_lab.process import VP, Linear
from diffusion_lab.sampler import (
    DDIM,
    EDM,
    DPMSolver,
    ProbabilityFlow,
    RungeKutta,
    Sampler,
    UniPC,
)
from diffusion_lab.verification import denoiser_of

data, process = eight_gaussians(), VP(Linear())
denoiser = denoiser_of(data, process)
torch.manual_seed(0)
settings = {
    "spacing": "log_snr",
    "precision": "float64",
    "denoise": False,
    "t_end": 1e-2,
}
noise = torch.randn(500, 2, dtype=torch.float64)
reference = ProbabilityFlow(1e-9, 1e-9, precision="float64", denoise=False, t_end=1e-2)
(end,) = reference.solve(denoiser, noise, [1.0, 1e-2])

steps = {
    "DDIM (order 1)": (DDIM(), 1),
    "Heun, EDM (2)": (EDM(2), 2),
    "DPM-Solver++ 2M (2)": (DPMSolver(2), 1),
    "UniPC (3)": (UniPC(3), 1),
    "Runge-Kutta (4)": (RungeKutta("rk4"), 4),
}
budgets = (8, 16, 32, 64, 128, 256)
figure, axis = plt.subplots(figsize=(8, 3.6))
for name, (step, cost) in steps.items():
    errors = []
    for budget in budgets:
        sampler = Sampler(step, steps=max(2, budget // cost + 1), **settings)
        x = list(sampler.trajectory(denoiser, noise))[-1].x
        errors.append((x - end).norm(dim=1).mean().item())
    axis.plot(budgets, errors, marker="o", label=name)
axis.set(
    xscale="log", yscale="log", xlabel="network evaluations", ylabel="error of a sample"
)
axis.set(xticks=budgets, xticklabels=budgets)
axis.minorticks_off()
axis.legend()

# %%
# What counts in the end is the distribution.  A stochastic sampler follows no path, and
# forgets its errors.  The energy distance :cite:p:`szekely2013` of 4,000 samples to
# 4,000 points of the data; the dotted line is that of 4,000 other points, and near it
# differences are chance.

from diffusion_lab.metric import energy_distance
from diffusion_lab.sampler import Ancestral, DPMppSDE

truth = data.sample(4000, torch.Generator().manual_seed(1))
samplers = {
    "DDPM": lambda n: Sampler(Ancestral("fixed_small"), steps=n, spacing="log_snr"),
    "DDIM": lambda n: Sampler(DDIM(), steps=n, spacing="log_snr"),
    "DPM-Solver++ 2M": lambda n: Sampler(DPMSolver(2), steps=n, spacing="log_snr"),
    "SDE-DPM-Solver++": lambda n: Sampler(DPMppSDE(), steps=n // 2, spacing="log_snr"),
}
figure, axis = plt.subplots(figsize=(8, 3))
for name, build in samplers.items():
    values = []
    for budget in budgets[:5]:
        x = build(budget)(denoiser, (4000, 2), torch.Generator().manual_seed(0))
        values.append(energy_distance(x, truth))
    axis.plot(budgets[:5], values, marker="o", label=name)
other = data.sample(4000, torch.Generator().manual_seed(2))
axis.axhline(energy_distance(other, truth), color="grey", linestyle=":", label="data")
axis.set(
    xscale="log", yscale="log", xlabel="network evaluations", ylabel="energy distance"
)
axis.set(xticks=budgets[:5], xticklabels=budgets[:5])
axis.minorticks_off()
axis.legend()

# %%
# For a trained model, ``python sample.py ckpt_path=last
# 'compare=[ancestral,ddim,heun,dpm_solver,unipc]'`` draws the same picture with its
# metric.
