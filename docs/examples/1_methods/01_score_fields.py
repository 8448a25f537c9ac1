r"""
Score fields, and why noise is annealed
=======================================

The *score* of a density is the gradient of its logarithm, :math:`s(x) = \nabla_x \log
p(x)`.  It needs no normalising constant, and Langevin dynamics turns it into samples:

.. math:: x \leftarrow x + \epsilon\, s(x) + \sqrt{2 \epsilon}\, z, \qquad z \sim \mathcal N(0, I).

This page uses the exact score of two Gaussians with weights 20 : 80, so nothing is
learned, and every error is one of the sampler.  It shows the two pitfalls of
:cite:t:`song2019`, and the remedy on which all later methods are built: many noise
levels.
"""

# %%
# Between the modes the score is weak, and it hardly depends on their weights.  At a
# larger noise level the modes overlap, and the arrows of the whole plane point to where
# the mass is.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.data.toy2d_density import two_modes
from diffusion_lab.plot.picture import density_image, draw_arrows, set_window

data, window = two_modes(), (-3.0, 3.0, -3.0, 3.0)


def background(axis, sigma=0.0):
    image = density_image(
        window, lambda x: data.log_density(x, 1.0, sigma), None, torch.zeros(1)
    )
    axis.imshow(image**0.5, extent=window, origin="lower", cmap="Blues", vmax=1.7)
    set_window(axis, window)


figure, axes = plt.subplots(1, 3, figsize=(8, 3))
for axis, sigma in zip(axes, (0.05, 0.5, 1.5), strict=True):
    background(axis, sigma)
    draw_arrows(
        axis, window, lambda x, sigma=sigma: data.score(x, 1.0, sigma), torch.zeros(1)
    )
    axis.set_title(f"score at noise level {sigma}")

# %%
# Langevin dynamics at the smallest level alone starts from uniform points and falls
# into the nearer mode: the weights are wrong, however many steps it makes.  *Annealed*
# Langevin dynamics (Algorithm 1 of the paper) goes from the largest level to the
# smallest, and recovers them.

from diffusion_lab.process import DiscreteProcess, Geometric
from diffusion_lab.sampler import AnnealedLangevin, Sampler
from diffusion_lab.verification import denoiser_of

denoiser = denoiser_of(
    data, DiscreteProcess(Geometric(sigma_min=0.05, sigma_max=2.0), levels=10)
)
samplers = {
    "one noise level": Sampler(
        corrector=AnnealedLangevin(step_size=4e-3, steps=1000),
        steps=1,
        denoise=False,
        start="uniform",
    ),
    "ten noise levels": Sampler(
        corrector=AnnealedLangevin(step_size=2.5e-4, steps=100), start="uniform"
    ),
}
samples = {"data": data.sample(2000, torch.Generator().manual_seed(0))}
for name, sampler in samplers.items():
    samples[name] = sampler(denoiser, (2000, 2), torch.Generator().manual_seed(0))

figure, axes = plt.subplots(1, 3, figsize=(8, 3))
for axis, (name, points) in zip(axes, samples.items(), strict=True):
    background(axis)
    axis.scatter(*points[:1000].T, s=3, color="tab:orange", linewidths=0)
    low, high = data.mode_weights(points).tolist()
    axis.set_title(f"{name}: {100 * low:.0f} : {100 * high:.0f}")

# %%
# The same experiment with a learned score is one command: ``python train.py
# experiment=pitfalls/mode_weights``.
