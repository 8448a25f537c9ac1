r"""
Consistency models: the end of a path in one step
=================================================

A sampler follows the probability flow in many small steps.  A consistency model
:cite:p:`song2023` maps any point of a path to its end at once, so all points of a path
have the same output:

.. math:: f(x_t, t) = f(x_r, r) \quad\text{for } r < t \text{ on the same path}, \qquad f(x_0, 0) = x_0 .

Consistency *distillation* takes the step from t to r by the score of a trained model.
Here the teacher is exact, so the student's error is its own.
"""

# %%
# The student has EDM's preconditioning, with the boundary condition built in: at the
# smallest noise level its output is its input.  The loss compares its outputs at two
# neighbouring noise levels.

import matplotlib.pyplot as plt
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion_lab.data.toy2d_density import two_modes
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import ConsistencyLoss, FrozenDenoiser, KarrasPairs
from diffusion_lab.network import MLP
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, Geometric
from diffusion_lab.sampler import EDM, Consistency, Sampler
from diffusion_lab.verification import denoiser_of

data, process = two_modes(), VE(Geometric(sigma_min=0.01, sigma_max=5.0))
teacher, points = (
    denoiser_of(data, process),
    data.sample(20_000, torch.Generator().manual_seed(0)),
)

torch.manual_seed(0)
network = MLP(dimensions=2, width=128, depth=3)
row = {"unit_input": True, "sigma_data": 0.85, "boundary": 0.01, "bounded": False}
student = Denoiser(
    network, process, Parameterization("edm", "quarter_log_sigma", **row)
)
pairs = KarrasPairs(intervals=17, sigma_min=0.01)
loss, steps = ConsistencyLoss(pairs, FrozenDenoiser(teacher)), 2000
average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99))
optimizer = torch.optim.Adam(network.parameters(), 2e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for _ in range(steps):
    optimizer.zero_grad()
    loss(student, points[torch.randint(len(points), (256,))]).mean().backward()
    optimizer.step()
    decay.step()
    loss.after_update(network)
    average.update_parameters(network)
student = student.with_network(average.module)

# %%
# Samples, all from the same noise: the teacher by 32 Heun steps and by two, the student
# in one step, and in two.  Two steps of the student do not follow a path: it maps to
# data, noise is added again, and it maps once more.

from diffusion_lab.metric import energy_distance


def draw(denoiser, sampler):
    return sampler(denoiser, (2000, 2), torch.Generator().manual_seed(0))


samples = {
    "teacher, 63 evaluations": draw(
        teacher, Sampler(EDM(2), steps=32, spacing="karras")
    ),
    "teacher, 3 evaluations": draw(teacher, Sampler(EDM(2), steps=2, spacing="karras")),
    "student, 1 evaluation": draw(
        student, Sampler(Consistency(0.01), steps=1, spacing="trailing")
    ),
    "student, 2 evaluations": draw(
        student,
        Sampler(Consistency(0.01), spacing="explicit", times=[5.0, 0.6], unit="sigma"),
    ),
}
figure, axes = plt.subplots(1, 4, figsize=(8, 2.5), sharex=True, sharey=True)
for axis, (name, x) in zip(axes, samples.items(), strict=True):
    axis.scatter(*x.T, s=1, linewidths=0)
    axis.set(xlim=(-2, 2), ylim=(-2, 2), xticks=[], yticks=[], aspect="equal")
    distance = energy_distance(x, points[:2000])
    axis.set_title(f"{name}\nenergy distance {distance:.4f}", fontsize=8)

# %%
# The map itself: where a plane of noise ends, by the first coordinate.  The two regions
# meet in a sharp border, which a smooth network rounds off; that is where the points
# between the modes come from.

side = torch.linspace(-12, 12, 120)
grid = torch.cartesian_prod(side, side)
with torch.no_grad():
    ends = {"student": student(grid, torch.ones(len(grid))).x0}
flow = Sampler(EDM(2), steps=20, spacing="karras")
ends["teacher"] = list(flow.trajectory(teacher, grid))[-1].x
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6))
for axis, name in zip(axes, ("teacher", "student"), strict=True):
    end = ends[name][:, 0].reshape(120, 120).T
    axis.imshow(end, cmap="coolwarm", origin="lower", extent=(-12, 12, -12, 12))
    axis.set(title=f"{name}: first coordinate of the end", xticks=[], yticks=[])

# %%
# For images: ``python train.py model=consistency loss=consistency_distillation
# loss.teacher.ckpt_path=RUN``; the guide compares it with progressive distillation and
# FlashDiffusion.
