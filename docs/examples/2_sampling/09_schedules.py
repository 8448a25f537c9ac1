r"""
Schedules and the log signal-to-noise ratio
===========================================

A schedule says how fast the signal fades.  Up to a rescaling of x, all that matters is
the log signal-to-noise ratio :cite:p:`kingma2021`

.. math:: \lambda(t) = \log \frac{\alpha(t)^2}{\sigma(t)^2} .

Two processes with the same :math:`\lambda` see the same images, only at other times. So
one picture in :math:`\lambda` compares schedules, the times at which a loss trains, its
weights, and the steps of a sampler.
"""

# %%
# Left: t to log-SNR for five schedules.  Right: where uniform training times lie in
# log-SNR.  The linear schedule of DDPM spends many of them at the noisy end, where
# there is little to learn; the cosine one fewer :cite:p:`nichol2021`.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.process import (
    VE,
    VP,
    Cosine,
    Geometric,
    Linear,
    ProbabilityPath,
    Rectified,
    Sigmoid,
)

processes = {
    "linear": VP(Linear()),
    "cosine": VP(Cosine()),
    "sigmoid": VP(Sigmoid()),
    "rectified": ProbabilityPath(Rectified()),
    "geometric": VE(Geometric(sigma_min=0.01, sigma_max=50.0)),
}
t = torch.linspace(1e-3, 1 - 1e-3, 2000, dtype=torch.float64)

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
for name, process in processes.items():
    left.plot(t, process.log_snr(t), label=name)
    right.hist(
        process.log_snr(t),
        bins=60,
        range=(-15, 15),
        density=True,
        histtype="step",
        label=name,
    )
left.axhline(0, color="grey", linewidth=0.8)
left.set(xlabel="t", ylabel=r"log-SNR $\lambda$", ylim=(-15, 15), title="schedules")
right.set(xlabel=r"log-SNR $\lambda$", title="density of uniform training times")
left.legend()

# %%
# Weights do the same as times: the objective is their product.  ``DenoisingLoss`` has
# the weights of the papers, as factors of :math:`\lVert\hat\epsilon -
# \epsilon\rVert^2`; a time law replaces the uniform times.

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import WEIGHTS, LogitNormal, LogNormal, Uniform
from diffusion_lab.parameterization import Parameterization

process = processes["cosine"]
denoiser = Denoiser(lambda x, c_noise: x, process, Parameterization("eps", "time_999"))

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
for name in ("simple", "x0", "v", "min_snr", "likelihood"):
    left.plot(process.log_snr(t), WEIGHTS[name](denoiser, t, 5.0), label=name)
left.set(
    xlabel=r"log-SNR $\lambda$",
    yscale="log",
    xlim=(-12, 12),
    ylim=(1e-3, 1e4),
    title="weights of the error of eps",
)
left.legend()
torch.manual_seed(0)
for name, law in {
    "uniform": Uniform(),
    "EDM's log-normal": LogNormal(),
    "logit-normal": LogitNormal(),
}.items():
    times, _ = law.sample(process, 50_000, torch.device("cpu"), None)
    right.hist(
        process.log_snr(times.double()),
        bins=80,
        range=(-12, 12),
        density=True,
        histtype="step",
        label=name,
    )
right.set(xlabel=r"log-SNR $\lambda$", title="training times of the cosine schedule")
right.legend()

# %%
# Finally the steps of a sampler.  Ten steps of the same process, by several spacings:
# "trailing" starts at pure noise :cite:p:`lin2023`, "log_snr" is even in log-SNR
# :cite:p:`lu2022`, and "karras" puts most steps where the noise is low
# :cite:p:`karras2022`.

figure, axis = plt.subplots(figsize=(8, 2.4))
spacings = ("uniform", "quadratic", "trailing", "log_snr", "karras")
for row, spacing in enumerate(spacings):
    axis.plot(
        process.log_snr(process.timesteps(10, spacing, t_start=0.99)),
        [row] * 10,
        "o",
        markersize=5,
    )
axis.set(
    yticks=range(len(spacings)),
    yticklabels=spacings,
    xlabel=r"log-SNR $\lambda$",
    title="ten steps",
)
axis.invert_yaxis()
