r"""
Weights of other programs
=========================

Published weights are files of tensors whose names and layouts are those of another
program.  ``diffusion-lab import`` reads those of score_sde_pytorch, NCSN, NCSNv2, DDIM,
improved- and guided-diffusion, EDM and diffusers into a run, and ``export`` writes a
run for diffusers.  No code in a file is executed, and weights that do not fit are
refused.

This site is built without a network, so the foreign file is made here: a small model in
the layout of diffusers.
"""

# %%
# A run of a few seconds, and its weights for diffusers.

import subprocess
import sys
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())


def run(*command):
    """Run a command in the folder, as in a shell."""
    settings = {"cwd": folder, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-m", *command], **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


small = (
    *("network.channels=16", "network.multipliers=[1,2]", "network.attention=[4]"),
    *("network.blocks=1", "network.groups=8"),
)
quick = (
    *(
        "trainer.max_steps=300",
        "data.batch_size=32",
        "optimizer.lr=3e-3",
        "warmup_steps=0",
    ),
    *("callback.ema.decay=0.97", "metric=none", "likelihood=none", "logger=csv"),
)
run("diffusion_lab.train", *small, *quick, "hydra.run.dir=run")
print(run("diffusion_lab.export", "run", "format=diffusers", "out=foreign"))
for path in sorted((folder / "foreign").rglob("*")):
    if path.is_file():
        print(f"{path.relative_to(folder)}: {path.stat().st_size:,} bytes")

# %%
# Import them.  The file holds weights only, so the model is described as for ``train``.

print(
    run(
        "diffusion_lab.interop",
        "foreign/unet/diffusion_pytorch_model.safetensors",
        *("model=ddpm", "data=digits", *small, "out=imported"),
    )
)

# %%
# The images of both from the same noise: ours, and the ones of the imported weights.

import matplotlib.pyplot as plt

import diffusion_lab

ours, theirs = (diffusion_lab.load(folder / name) for name in ("run", "imported"))
pictures = [model.sample(10, sampler="ddim", steps=20) for model in (ours, theirs)]
print(f"largest difference: {(pictures[0] - pictures[1]).abs().max():.1e}")
figure, axes = plt.subplots(2, 10, figsize=(8, 1.8))
for row, images in zip(axes, pictures, strict=True):
    for axis, image in zip(row, images, strict=True):
        axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])

# %%
# After so few steps they are not digits yet; what counts is that both rows are equal.
# A published file is imported in the same way: ``diffusion-lab import checkpoint_24.pth
# experiment=score_sde/ncsnpp_continuous``.
