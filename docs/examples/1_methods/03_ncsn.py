r"""
From NCSN to NCSNv2 in five techniques
======================================

NCSN :cite:p:`song2019` learns the scores of many noise levels by one network, and
samples by annealed Langevin dynamics.  Its levels and step sizes were found by trial.
NCSNv2 :cite:p:`song2020` derives them from the data.
``diffusion_lab.process.techniques`` holds the equations; this page applies them to 8×8
digits.

**Technique 1.**  The largest noise level is the largest distance between two data points, so that chains can move from any mode to any other.
"""

import matplotlib.pyplot as plt
import torch

from diffusion_lab.data import Digits
from diffusion_lab.process import techniques

digits = torch.stack([x for x, _ in Digits().load().train]).float() / 16
distances = torch.pdist(digits[:600].flatten(1))

figure, axis = plt.subplots(figsize=(8, 2.4))
axis.hist(distances, bins=100)
largest = techniques.largest_distance(digits)
axis.axvline(largest, color="tab:orange", label=f"largest: {largest:.2f}")
axis.set(xlabel="distance between two digits, in units of the grey range", yticks=[])
axis.legend()

# %%
# **Technique 2.**  Levels are geometric.  In D dimensions noise of level :math:`\sigma`
# lies near a sphere of radius :math:`\sqrt D\, \sigma`.  A network trained at one level
# is useful at the next if these shells overlap; the ratio :math:`\gamma` of neighbours
# should give an overlap of about one half.  In more dimensions, shells are thinner, and
# more levels are needed.

gamma = torch.linspace(1.001, 1.6, 300)
figure, axis = plt.subplots(figsize=(8, 2.8))
for dimensions in (64, 784, 3 * 32 * 32, 3 * 64 * 64):
    best = techniques.ratio(dimensions)
    overlap = [techniques.overlap(g, dimensions) for g in gamma.tolist()]
    axis.plot(gamma, overlap, label=f"D = {dimensions:,}: {best:.3f}")
axis.axhline(0.5, color="grey", linewidth=0.8)
axis.set(xlabel=r"ratio $\gamma$ of noise levels", ylabel="overlap")
axis.legend(title=r"$\gamma$ with overlap 0.5")

# %%
# **Technique 4.**  With T Langevin steps at each level, the step size should bring the
# variance of the chain to that of the level.  The ratio of the two is known in closed
# form (Proposition 3 of the paper) and has a minimum.

advice = techniques.advise(digits, sigma_min=0.05, steps=5)
sizes = torch.linspace(0.02, 1.5, 200) * advice.sigma_min**2
figure, axis = plt.subplots(figsize=(8, 2.8))
for steps in (3, 5, 20):
    chain = (advice.gamma, steps, advice.sigma_min)
    axis.plot(sizes, [techniques.variance_ratio(e, *chain) for e in sizes.tolist()])
    best = techniques.step_size(*chain)
    value = techniques.variance_ratio(best, *chain)
    axis.plot(best, value, "o", color="black", markersize=4)
    axis.annotate(f"T = {steps}", (best, value), (5, 6), textcoords="offset points")
axis.set(xlabel=r"step size $\epsilon$", ylabel="variance / wanted", ylim=(0.95, 2))
print(advice)

# %%
# **Techniques 3 and 5.**  The network need not know the level if its output is divided
# by :math:`\sigma`, because the size of the score is then right by construction.  And
# samples are taken with an exponential moving average of the weights.  Both are visible
# in a training on points: one network with the level as an input, one without, and the
# average of its weights.

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion_lab.data.toy2d_density import eight_gaussians
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.network import MLP
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, Geometric
from diffusion_lab.verification import denoiser_of

data, process = eight_gaussians(), DiscreteProcess(Geometric(0.05, 3.0), levels=10)
points, exact = data.sample(20_000, torch.Generator().manual_seed(0)), None
exact, loss = denoiser_of(data, process), DenoisingLoss(reduction="half_sum")


def error(denoiser):
    """The error of sigma times the score, over all levels."""
    generator = torch.Generator().manual_seed(1)
    t = process.sample_times(4000, torch.device("cpu"), generator)
    x = process.perturb(points[:4000], t, torch.randn(4000, 2, generator=generator))
    with torch.no_grad():
        return (
            (denoiser(x, t).eps - exact(x, t).eps).square().sum(1).mean().sqrt().item()
        )


def train(c_noise, steps=1000):
    """Errors of the raw and of the averaged weights, every 50 steps."""
    torch.manual_seed(0)
    network = MLP(dimensions=2, width=128, depth=3)
    denoiser = Denoiser(network, process, Parameterization("scaled_score", c_noise))
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer, raw, averaged = torch.optim.Adam(network.parameters(), 3e-3), [], []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(denoiser, points[torch.randint(len(points), (256,))]).mean().backward()
        optimizer.step()
        average.update_parameters(network)
        if step % 50 == 0:
            raw.append(error(denoiser))
            averaged.append(error(denoiser.with_network(average.module)))
    return raw, averaged


figure, axis = plt.subplots(figsize=(8, 3))
for (name, c_noise), colour in zip(
    {"knows the level": "level", "does not": "nothing"}.items(),
    ("C0", "C1"),
    strict=True,
):
    raw, averaged = train(c_noise)
    steps = range(50, 1001, 50)
    axis.plot(steps, raw, color=colour, linewidth=0.8, label=f"network {name}")
    axis.plot(
        steps, averaged, color=colour, linewidth=2.2, label="... average of weights"
    )
axis.set(xlabel="training step", ylabel="error", yscale="log", ylim=(None, 1))
axis.legend()

# %%
# In the plane a level cannot be read off a point, so the network that knows it does
# better; in the high dimensions of images, the amount of noise is visible, and one
# input fewer is needed.  The averages are smoother and better in both cases.  ``python
# train.py model=ncsnv2`` trains it on digits, and ``conf/experiment/ncsnv2/`` has the
# paper's ablation of the techniques.
