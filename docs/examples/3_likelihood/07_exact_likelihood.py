r"""
The probability flow, and exact likelihoods
===========================================

Every diffusion has an ordinary differential equation with the same densities
:cite:p:`song2021`, the *probability flow*

.. math:: \frac{\mathrm dx}{\mathrm dt} = f(t)\, x - \tfrac12 g(t)^2\, \nabla_x \log p_t(x) .

It maps data to noise one to one.  So the density of an image is that of its noise times
the change of volume on the way, the integral of a divergence:

.. math:: \log p_0(x_0) = \log p_1(x_1) + \int_0^1 \nabla \cdot v(x_t, t)\, \mathrm dt .

For images the divergence is estimated by :math:`z^\top \nabla v\, z` with random z
:cite:p:`hutchinson1990`; for points the trace is exact.
"""

# %%
# Points of eight modes, along their paths to noise.  Colours stay together: the map is
# smooth and invertible.

import math

import matplotlib.pyplot as plt
import torch

from diffusion_lab.data.toy2d_density import eight_gaussians
from diffusion_lab.process import VP, Linear
from diffusion_lab.sampler import ProbabilityFlow
from diffusion_lab.verification import denoiser_of

data, process = eight_gaussians(), VP(Linear())
denoiser, flow = denoiser_of(data, process), ProbabilityFlow()
x0 = data.sample(1500, torch.Generator().manual_seed(0))
times = [1e-5, 0.1, 0.25, 0.5, 1.0]
path = [x0, *flow.solve(denoiser, x0, times)]

figure, axes = plt.subplots(1, 5, figsize=(8, 2), sharex=True, sharey=True)
for axis, x, t in zip(axes, path, times, strict=True):
    axis.scatter(*x.T, c=torch.atan2(*x0.T), s=2, cmap="hsv", linewidths=0)
    axis.set(title=f"t = {t:g}", xticks=[], yticks=[], xlim=(-3, 3), ylim=(-3, 3))
(back,) = flow.solve(denoiser, path[-1], [1.0, 1e-5])
print(f"there and back: largest error {(back - x0).abs().max():.1e}")

# %%
# The density on a grid, by the flow and by the formula.  The data and the exact score
# are known here, so the difference is the error of the likelihood code.

from diffusion_lab.likelihood import FlowLikelihood

side = torch.linspace(-2, 2, 40)
grid = torch.cartesian_prod(side, side)
log_p = FlowLikelihood(1e-4, 1e-4, probe="exact")(denoiser, grid, None).log_likelihood
exact = data.log_density(grid)

figure, axes = plt.subplots(1, 3, figsize=(8, 2.6))
for axis, values, title in (
    (axes[0], log_p.exp(), "density by the flow"),
    (axes[1], exact.exp(), "exact density"),
    (
        axes[2],
        (log_p - exact).abs().clamp(min=1e-7).log10(),
        r"$\log_{10}$ error, nats",
    ),
):
    shown = axis.imshow(values.reshape(40, 40).T, origin="lower", extent=(-2, 2, -2, 2))
    axis.set(title=title, xticks=[], yticks=[])
    figure.colorbar(shown, ax=axis, shrink=0.7)

# %%
# The error is large only far from the data, where the density of clean data falls below
# :math:`e^{-100}`, and the flow starts at t = 1e-5 and not at 0.  On data, it follows
# the tolerance of the solver; a random probe adds variance, but no bias.

held_out = data.sample(300, torch.Generator().manual_seed(1))
truth = data.log_density(held_out)
print("tolerance   evaluations   error in nats, exact trace   one random probe")
for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
    exact_trace, probe = (
        FlowLikelihood(tolerance, tolerance, probe=kind)(
            denoiser, held_out, None, torch.Generator().manual_seed(2)
        )
        for kind in ("exact", "rademacher")
    )
    errors = [(r.log_likelihood - truth).abs().mean() for r in (exact_trace, probe)]
    print(f"{tolerance:9.0e}{exact_trace.nfe:14}{errors[0]:29.1e}{errors[1]:19.2f}")
print(
    f"mean log-likelihood {truth.mean():.3f} nats, or {-truth.mean() / math.log(2) / 2:.3f} bits/dim"
)

# %%
# Images have grey levels, not densities.  ``python sample.py ckpt_path=last
# likelihood=flow`` adds uniform noise of one level (dequantization), and reports bits
# per dimension: a bound on the probability of the grey levels :cite:p:`theis2016`.
