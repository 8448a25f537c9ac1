"""The command `python -m diffusion_lab.interop`: convert an official checkpoint into one of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.cli import command
from diffusion_lab.config.command_line import only_overrides, own_keys
from diffusion_lab.config.imports import quick_imports
from diffusion_lab.errors import ConfigError

HELP = """\
Convert an official checkpoint into one that sample.py can sample from and evaluate.

  python -m diffusion_lab.interop FILE [group=option ...] [key=value ...] [out=DIRECTORY]

FILE is one of
  checkpoint_24.pth     of score_sde_pytorch: NCSN++, DDPM++, DDPM; EMA weights are read by position
  checkpoint.pth        of ncsn or ncsnv2
  ckpt.pth              of ddim, or weights of DDPM in its layout
  edm-cifar10.pt        weights of EDM without its program: see docs/guide/checkpoints.md for its .pkl
  diffusion_pytorch_model.safetensors or .bin   of diffusers: the unet of a DDPM pipeline, or the pipeline's folder
  model.safetensors     of diffusion-lab export, which contains its configuration: no other arguments then
  hub:user/name         a repository of the Hugging Face Hub with one of the last two
No code in it is executed: anything but tensors, numbers and containers is refused.

The other arguments are those with which train.py would train such a model; the file does not contain them.
  experiment=score_sde/ncsnpp_continuous        a row of a paper's table, or
  model=score_sde sde=ve data=cifar10           NCSN++ with the continuous VE SDE
  model=ncsn data=cifar10                       model=ncsnv2 data=cifar10
  model=ddpm data=cifar10                       DDPM, from ddim or diffusers
  model=edm data=cifar10                        EDM, VP; network=edm_ncsnpp for VE
  model=iddpm data=cifar10                      IDDPM; experiment=adm/imagenet64, adm/classifier: ADM and its classifier
Set network.channels=..., network.multipliers=... and so on where the weights differ from these.
  out=DIRECTORY         where to write; default logs/imported/NAME-OF-THE-FILE

Then:  python sample.py ckpt_path=DIRECTORY num_samples=64          see python sample.py --help
"""
USED = (("model", "network", "sampler", "schedule", "loss", "likelihood", "optimizer", "sde", "callback"),)
"""Parts of a training configuration that importing uses; the data need not exist."""


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    """Import one file."""
    file, *rest = arguments
    if "=" in file and not Path(file).exists():
        raise ConfigError(f"{file} is not a file: give the checkpoint first, then model=... and data=...")
    from diffusion_lab.config.compose import check

    given, overrides = own_keys(rest, "out")
    if given.get("out") == "":
        raise ConfigError("out= is empty: give a folder, such as out=logs/imported/mine")
    overrides = only_overrides(overrides, "interop")
    check("train", overrides, used=USED)
    # Imported here: torch and Lightning take seconds to import, and a typo should be refused at once.
    with quick_imports():
        from diffusion_lab.run.import_checkpoint import import_checkpoint

    import_checkpoint(file, overrides, given.get("out"))
