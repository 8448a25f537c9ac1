r"""
DDPM step by step
=================

DDPM :cite:p:`ho2020` adds noise to an image in T steps, and trains a network to undo
each.  Any step can be reached at once,

.. math:: x_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad \alpha_t^2 + \sigma_t^2 = 1,

and the loss is the error of the network's estimate of the noise, at a random step:
:math:`\lVert \hat\epsilon(x_t, t) - \epsilon \rVert^2`.  This page does all of it for
8×8 digits, in a minute.
"""

# %%
# The forward process: digits at six of 1,000 levels.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.data import Digits
from diffusion_lab.process import DiscreteProcess, Linear

torch.manual_seed(0)
digits = (
    torch.stack([x for x, _ in Digits().load().train]).float() / 8 - 1
)  # in [-1, 1]
process = DiscreteProcess(Linear(), levels=1000)


def show(axis, image):
    axis.imshow(image[0], cmap="gray", vmin=-1.3, vmax=1.3)
    axis.set(xticks=[], yticks=[])


figure, axes = plt.subplots(3, 6, figsize=(8, 4))
for column, t in zip(axes.T, (1e-3, 0.1, 0.25, 0.5, 0.75, 1.0), strict=True):
    noisy = process.perturb(digits[:3], torch.full((3,), t), torch.randn(3, 1, 8, 8))
    column[0].set_title(f"t = {t:g}")
    for axis, image in zip(column, noisy, strict=True):
        show(axis, image)

# %%
# The training loop.  A *denoiser* is a network with the meaning of its output (here
# eps) and its process; the loss draws time and noise.  An average of the weights makes
# better samples than the last weights.

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.network import UNet
from diffusion_lab.parameterization import Parameterization

shape = {"in_channels": 1, "image_size": 8, "channels": 16, "multipliers": (1, 2)}
network = UNet(**shape, blocks=1, attention=(4,), groups=8, dropout=0.0)
denoiser = Denoiser(network, process, Parameterization("eps", "level"))
average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99))
loss, steps, curve = DenoisingLoss(), 900, []
optimizer = torch.optim.Adam(network.parameters(), 4e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for _ in range(steps):
    batch = digits[torch.randint(len(digits), (64,))]
    value = loss(denoiser, batch).mean()
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    decay.step()
    average.update_parameters(network)
    curve.append(value.item())

figure, axis = plt.subplots(figsize=(8, 2.4))
axis.plot(curve, linewidth=0.5)
axis.plot(torch.tensor(curve).unfold(0, 50, 50).mean(1).repeat_interleave(50))
axis.set(xlabel="training step", ylabel="loss", yscale="log")

# %%
# Sampling is ancestral: from noise, each step estimates the clean image, and draws from
# the posterior of the step before, :math:`q(x_{t-1} | x_t, \hat x_0)`.  Below, the
# states of six samples, and in the last column the result.

from diffusion_lab.sampler import Ancestral, Sampler

sampler, generator = (
    Sampler(Ancestral(), steps=100, clip=True),
    torch.Generator().manual_seed(0),
)
averaged = denoiser.with_network(average.module.eval())
states = list(
    sampler.trajectory(
        averaged, torch.randn(6, 1, 8, 8, generator=generator), generator
    )
)
figure, axes = plt.subplots(6, 8, figsize=(8, 6))
for column, index in zip(axes.T, (0, 30, 50, 65, 75, 85, 92, 99), strict=True):
    column[0].set_title(f"t = {states[index].t:.2f}")
    for axis, image in zip(column, states[index].x, strict=True):
        show(axis, image)

# %%
# ``python train.py`` does the same with the paper's network and evaluation;
# ``model=ddpm data=cifar10`` has the published settings.
