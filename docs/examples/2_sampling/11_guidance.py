r"""
Guidance, on a mixture
======================

A conditional model has the score of each class, :math:`\nabla \log p_t(x | c)`.
Classifier-free guidance :cite:p:`ho2022` extrapolates from the score of all classes to
that of one,

.. math:: \hat s = \nabla \log p_t(x) + \gamma \left[ \nabla \log p_t(x | c) - \nabla \log p_t(x) \right],

with :math:`\gamma = 1` for no guidance.  The bracket is the gradient of :math:`\log p(c
| x_t)`, which classifier guidance :cite:p:`dhariwal2021` takes from a classifier.  On a
mixture every term is exact, so one can see what guidance does.
"""

# %%
# Two classes: the left and the right half of eight modes.  The network of this denoiser
# returns the exact score of the class of each label; the label 2 stands for "all
# classes", as in a model trained with label dropout.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.data.toy2d_density import GaussianMixture, eight_gaussians
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance import Autoguidance, ClassifierFree
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.plot.picture import density_image, set_window
from diffusion_lab.process import VP, Linear
from diffusion_lab.sampler import EDM, Sampler

data, process, window = eight_gaussians(), VP(Linear()), (-2.0, 2.0, -2.0, 2.0)
right = data.means[:, 0] > -0.1
classes = [
    GaussianMixture(
        data.means[one], torch.full((int(one.sum()),), 1 / one.sum()).double(), 0.25
    )
    for one in (~right, right)
]
both = GaussianMixture(data.means, data.weights, 0.25)


def score(x, c_noise, label):
    alpha, sigma = (k.to(x) for k in process.alpha_sigma(c_noise.double() / 999))
    scores = torch.stack([one.score(x, alpha, sigma) for one in (*classes, both)])
    return scores[label, torch.arange(len(x))]


denoiser = Denoiser(
    score, process, Parameterization("score", "time_999", bounded=False)
)
denoiser.classes, denoiser.null = 2, 2
sampler, labels = Sampler(EDM(2), steps=40, spacing="log_snr"), torch.ones(1500).long()


def samples(guidance):
    guided = guidance(denoiser.given(label=labels))
    return sampler(guided, (len(labels), 2), torch.Generator().manual_seed(0))


# %%
# Samples of the right class.  With a larger scale they move away from the other class,
# and lose variety: modes at the border are given up, and all points move outwards.

figure, axes = plt.subplots(1, 4, figsize=(8, 2.4))
for axis, scale in zip(axes, (1, 2, 4, 8), strict=True):
    image = density_image(window, classes[1].log_density, None, torch.zeros(1))
    axis.imshow(image**0.5, extent=window, origin="lower", cmap="Blues", vmax=1.7)
    axis.scatter(
        *samples(ClassifierFree(scale)).T, s=2, color="tab:orange", linewidths=0
    )
    set_window(axis, window)
    axis.set_title(f"scale {scale}")

# %%
# It is often said that guidance samples from :math:`p(x)\, p(c | x)^\gamma`.  It does
# not :cite:p:`bradley2024`: that product of *clean* densities is known here, too. Left,
# its density for :math:`\gamma = 4`, and right, a histogram of the guided samples.

side = (torch.arange(100) + 0.5) / 25 - 2
grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2)
log_p, log_class = both.log_density(grid), classes[1].log_density(grid)
share = right.double().mean().log()
tilted = (log_p + 4 * (log_class + share - log_p)).softmax(0).reshape(100, 100)

figure, axes = plt.subplots(1, 2, figsize=(8, 3.4))
axes[0].imshow(tilted, extent=window, origin="lower", cmap="Blues")
axes[1].hist2d(
    *samples(ClassifierFree(4)).T, bins=60, range=[(-2, 2), (-2, 2)], cmap="Blues"
)
for axis, title in zip(
    axes, ("the product of densities", "guided samples"), strict=True
):
    axis.set(title=title, xticks=[], yticks=[], aspect="equal")

# %%
# Two remedies for the loss of variety.  An *interval* :cite:p:`kynkaanniemi2024` guides
# only at middle noise levels, where classes part; *autoguidance*
# :cite:p:`karras2024auto` guides by a weaker model of the same data, here one with
# wider modes: it removes samples between modes, and keeps the modes.

wide = [GaussianMixture(one.means, one.weights, 0.45) for one in (*classes, both)]


def weak_score(x, c_noise, label):
    alpha, sigma = (k.to(x) for k in process.alpha_sigma(c_noise.double() / 999))
    scores = torch.stack([one.score(x, alpha, sigma) for one in wide])
    return scores[label, torch.arange(len(x))]


weak = denoiser.with_network(weak_score)
choices = {
    "no guidance": ClassifierFree(1),
    "scale 4": ClassifierFree(4),
    "... at sigma/alpha in [0.2, 0.5]": ClassifierFree(4, interval=(0.2, 0.5)),
    "autoguidance, scale 2": Autoguidance(weak, 2),
}
figure, axes = plt.subplots(1, 4, figsize=(8, 2.4))
for axis, (name, guidance) in zip(axes, choices.items(), strict=True):
    image = density_image(window, classes[1].log_density, None, torch.zeros(1))
    axis.imshow(image**0.5, extent=window, origin="lower", cmap="Blues", vmax=1.7)
    axis.scatter(*samples(guidance).T, s=2, color="tab:orange", linewidths=0)
    set_window(axis, window)
    axis.set_title(name, fontsize=8)

# %%
# For a trained model: ``python train.py data.conditional=true``, then ``python
# sample.py ckpt_path=last label=3 guidance=classifier_free guidance.scale=2``.
