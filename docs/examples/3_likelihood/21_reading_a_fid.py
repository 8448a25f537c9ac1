r"""
Reading a FID
=============

The Fréchet distance :cite:p:`heusel2017` compares two sets of images by the means m and
covariances S of their features,

.. math:: d = \lVert m_a - m_b \rVert^2 + \operatorname{tr}\left( S_a + S_b - 2 (S_a S_b)^{1/2} \right) .

With Inception's features it is the FID.  The number depends on much that is not the
model.  Here the features are those of a small classifier of digits, and the "models"
are the data themselves, with known faults: so the distance of each ought to be known.
"""

# %%
# **It falls with the number of samples.**  Both sets below are real digits, so the
# distance should be 0; with few samples it is not, by about c / N.  Two scores are
# comparable only with equal N, and the extrapolation to infinite N :cite:p:`chong2020`
# removes most of the bias.

import matplotlib.pyplot as plt
import torch

from diffusion_lab.data import Digits
from diffusion_lab.metric import (
    ClassifierFeatures,
    frechet_at_infinity,
    frechet_distance,
    moments,
)

splits = Digits().load()
images, labels = (torch.stack([one[i] for one in splits.train]) for i in (0, 1))
images = images.float() / 16
features = ClassifierFeatures()
features.prepare(images, labels)
rows = features(images).double()
reference = moments(rows)
generator = torch.Generator().manual_seed(0)


def drawn(count):
    """Real digits, drawn with replacement."""
    return rows[torch.randint(len(rows), (count,), generator=generator)]


counts = (150, 300, 600, 1200, 2400, 4800)
figure, axis = plt.subplots(figsize=(8, 3))
for _ in range(5):
    values = [frechet_distance(moments(drawn(n)), reference) for n in counts]
    axis.plot(counts, values, "o", color="C0", alpha=0.6)
limit = frechet_at_infinity(drawn(4800), reference).value
axis.axhline(limit, color="C1", label=f"extrapolated from 4,800: {limit:.3f}")
axis.set(xscale="log", yscale="log", xlabel="samples", ylabel="distance of real digits")
axis.set(xticks=counts, xticklabels=counts)
axis.minorticks_off()
axis.legend()

# %%
# **It sees faults of very different kinds, and does not say which.**  Noise, blur, a
# missing class, and a few memorised images.  Precision and recall
# :cite:p:`kynkaanniemi2019` tell bad images from missing ones.

from diffusion_lab.metric import neighbour_scores

torch.manual_seed(0)
blur = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
faults = {
    "none": images,
    "noise 0.05": (images + 0.05 * torch.randn_like(images)).clamp(0, 1),
    "a quarter blurred": torch.where(
        torch.rand(len(images), 1, 1, 1) < 0.25, blur, images
    ),
    "no eights": images[labels != 8],
    "100 images, repeated": images[:100].repeat(14, 1, 1, 1),
}
print(f"{'fault':<22}{'distance':>10}{'precision':>11}{'recall':>9}")
for name, x in faults.items():
    x = features(x[torch.randperm(len(x))[:1000]]).double()
    scores = neighbour_scores(x, rows[:1000])
    distance = frechet_distance(moments(x), reference)
    print(f"{name:<22}{distance:10.2f}{scores.precision:11.2f}{scores.recall:9.2f}")

figure, axes = plt.subplots(len(faults), 12, figsize=(8, 3.6))
for row, (name, x) in zip(axes, faults.items(), strict=True):
    for axis, image in zip(row, x[:12], strict=True):
        axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
    row[0].set_title(name, loc="left", fontsize=9)

# %%
# **It depends on the reference.**  Against the training set, the usual choice, a model
# that repeats training images wins; held-out images show the rest.  The name of a
# metric here says what was done: ``fid_inception_train_50k`` is the distance in
# Inception's features of 50,000 samples to the training set, and ``results.json`` holds
# the digest of weights and reference beside the number.
