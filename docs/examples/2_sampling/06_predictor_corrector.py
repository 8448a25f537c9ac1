r"""
Predictors and correctors
=========================

A *predictor* moves from one noise level to the next; its error accumulates.  A
*corrector* stays at a level and moves towards its density by Langevin steps, so it
forgets errors.  :cite:t:`song2021` alternate them.  Here the score is exact, so what
remains is the error of the sampler.

The data are smooth Gaussian images, whose samples have a known covariance C.  For a
Langevin corrector the step size follows from a signal-to-noise ratio r,

.. math:: x \leftarrow x + e\, s(x) + \sqrt{2 e}\, z, \qquad e = 2 \left( r\, \lVert z \rVert / \lVert s(x) \rVert \right)^2 .
"""

# %%
# What a corrector does.  At one noise level, all samples start as white noise, which
# has the wrong covariance.  Langevin steps bring it to that of the level, the faster
# the larger r; but a larger r leaves a larger error, because the steps are discretised.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.process import VE, Geometric
from diffusion_lab.sampler import AnnealedLangevin, Langevin, ReverseDiffusion, Sampler
from diffusion_lab.verification.linear_gaussian import GaussianImages, draw, errors

data, process = GaussianImages.smooth((1, 6, 6)), VE(Geometric(0.05, 10.0))
denoiser, zero, count = (
    data.denoiser(process),
    torch.zeros(36, dtype=torch.float64),
    4000,
)


def error(x, covariance):
    """The relative error of the covariance of samples."""
    return errors(x, zero + 1e-9, covariance)[1]


t = process.time(
    torch.zeros(1, dtype=torch.float64)
).item()  # sigma = 1: as much noise as data
level = data.covariance + torch.eye(36)
lengths = (1, 2, 5, 10, 20, 50, 100)
figure, axis = plt.subplots(figsize=(8, 3))
for snr in (0.05, 0.16, 0.4):
    values = []
    for steps in lengths:
        settings = {"spacing": "explicit", "times": [t], "denoise": False}
        sampler = Sampler(corrector=Langevin(snr, steps), **settings)
        x = sampler(denoiser, (count, *data.shape), torch.Generator().manual_seed(0))
        values.append(error(x, level))
    axis.plot(lengths, values, marker="o", label=f"r = {snr}")
axis.set(
    xscale="log",
    yscale="log",
    xlabel="Langevin steps",
    ylabel="error of the covariance",
)
axis.legend()

# %%
# Four samplers at equal cost: a predictor, its deterministic form (the probability
# flow), predictor and corrector, and a corrector alone, as NCSN has it.  A
# predictor-corrector sampler makes half as many steps, for each evaluates the network
# twice.

samplers = {
    "predictor": (1, lambda steps: Sampler(ReverseDiffusion(), steps=steps)),
    "probability flow": (
        1,
        lambda steps: Sampler(ReverseDiffusion(probability_flow=True), steps=steps),
    ),
    "predictor + corrector": (
        2,
        lambda steps: Sampler(ReverseDiffusion(), Langevin(snr=0.16), steps=steps),
    ),
    "corrector": (
        1,
        lambda steps: Sampler(
            corrector=AnnealedLangevin(snr=0.3, steps=1), steps=steps
        ),
    ),
}
budgets = (16, 32, 64, 128, 256)
figure, axis = plt.subplots(figsize=(8, 3.4))
for name, (cost, build) in samplers.items():
    values = []
    for budget in budgets:
        generator = torch.Generator().manual_seed(0)
        x = build(budget // cost)(denoiser, (count, *data.shape), generator)
        values.append(error(x, data.covariance))
    axis.plot(budgets, values, marker="o", label=name)
truth = draw(zero, data.covariance, count, data.shape, torch.Generator().manual_seed(0))
floor = error(truth, data.covariance)
axis.axhline(floor, color="grey", linestyle=":", label="samples of the data")
axis.set(
    xscale="log",
    yscale="log",
    xlabel="network evaluations",
    ylabel="error of the covariance",
)
axis.set(xticks=budgets, xticklabels=budgets)
axis.minorticks_off()
axis.legend()

# %%
# With an exact score there is nothing to correct, so the evaluations are better spent
# on steps of the predictor; a corrector alone is by far the slowest.  With a learned
# score it is otherwise: Table 1 of the paper has FID 4.98 for a VE predictor with 1,000
# steps, 4.88 with 2,000, and 3.62 with 1,000 steps and a corrector.  The configurations
# of that table are in ``conf/experiment/score_sde/table1``.
#
# ``python sample.py ckpt_path=last sampler=pc``, or ``sampler=custom`` with any
# ``sampler/predictor=`` and ``sampler/corrector=``.
