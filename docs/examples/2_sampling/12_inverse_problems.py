r"""
Inverse problems against the exact posterior
============================================

From a measurement :math:`y = A x_0 + \eta` an unconditional model can sample images
that explain it.  Many methods do so, and all approximate the score of the posterior,

.. math:: \nabla \log p_t(x | y) = \nabla \log p_t(x) + \nabla \log p_t(y | x) ,

whose second term is unknown.  For Gaussian images and linear A the posterior is
Gaussian in closed form: here methods are not compared by looks, but ranked by their
error.
"""

# %%
# Images of 8×8 pixels, smooth and Gaussian.  The left half is measured; four methods
# fill in the right one, from the same noise.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.control import DPS, Mask, PiGDM, RePaint, Replacement
from diffusion_lab.process import DiscreteProcess, Linear
from diffusion_lab.sampler import Ancestral, Sampler
from diffusion_lab.verification.linear_gaussian import GaussianImages, draw, errors

data, generator = (
    GaussianImages.smooth((1, 8, 8), length=3.0),
    torch.Generator().manual_seed(3),
)
denoiser = data.denoiser(DiscreteProcess(Linear(), 1000))
operator = Mask((torch.arange(8) < 4).double())
truth = draw(
    torch.zeros(64, dtype=torch.float64), data.covariance, 1, data.shape, generator
)
y, noise = operator(truth), 0.05
posterior = {std: data.posterior(operator, y, std) for std in (0.0, noise)}

methods = {
    "replacement": (Replacement(operator, y), 100),
    "RePaint": (RePaint(operator, y, jump_length=5, resamplings=4), 30),
    "DPS": (DPS(operator, y, scale=0.3), 100),
    "pseudoinverse": (PiGDM(operator, y, noise), 100),
}


def solve(control, steps, count):
    """Samples of a method; `of` binds it to a batch of images."""
    like = torch.zeros(count, *data.shape, dtype=torch.float64)
    controlled = control.of(range(count), lambda x: x, like)(denoiser)
    sampler = Sampler(Ancestral("fixed_small"), steps=steps, precision="float64")
    return sampler(controlled, like.shape, torch.Generator().manual_seed(0))


drawn = {name: solve(*method, 600) for name, method in methods.items()}
mean, covariance = posterior[noise]
drawn["exact"] = draw(mean, covariance, 600, data.shape, generator)

figure, axes = plt.subplots(len(drawn), 6, figsize=(8, 7))
for row, (name, x) in zip(axes, drawn.items(), strict=True):
    columns = [truth[0], y.expand_as(truth)[0], *x[:2], x.mean(0), x.std(0)]
    for axis, image in zip(row, columns, strict=True):
        limits = (0, 1) if axis is row[-1] else (-2.5, 2.5)
        axis.imshow(image[0], vmin=limits[0], vmax=limits[1])
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
for axis, title in zip(
    axes[0],
    ("truth", "measured", "a sample", "another", "mean", "std"),
    strict=True,
):
    axis.set_title(title)

# %%
# The errors of mean and covariance.  Replacement knows, at each noise level, only the
# noised measurement, so the right half hardly learns of the left one.  RePaint goes
# back and forth to mend this.  DPS takes the estimate of the clean image for the image,
# pseudoinverse guidance gives it a variance.

figure, axis = plt.subplots(figsize=(8, 3))
names, marks = list(drawn), []
for index, (name, x) in enumerate(drawn.items()):
    exact = posterior[0.0 if name in ("replacement", "RePaint") else noise]
    of_mean, of_covariance = errors(x, *exact)
    axis.bar(
        index - 0.2, of_mean, 0.38, color="C0", label="mean" if not index else None
    )
    axis.bar(
        index + 0.2,
        of_covariance,
        0.38,
        color="C1",
        label=None if index else "covariance",
    )
axis.set(xticks=range(len(names)), xticklabels=names, ylabel="relative error")
axis.legend()

# %%
# The papers are :cite:t:`song2021`, :cite:t:`lugmayr2022`, :cite:t:`chung2023` and
# :cite:t:`song2023pigdm`.  ``python -m diffusion_lab.bench.control`` makes the same
# comparison for super-resolution, colours and blur; ``python sample.py control=pigdm
# control/operator=blur guide=FILE`` applies it to a trained model.
