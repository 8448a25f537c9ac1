"""The command `python -m diffusion_lab.interop`: an official checkpoint in, a checkpoint of ours out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.config.command_line import only_overrides
from diffusion_lab.config.imports import quick_imports
from diffusion_lab.errors import ConfigError, refuse
from diffusion_lab.output import tolerant

HELP = """\
Turn an official checkpoint into one that sample.py samples from and evaluates.

  python -m diffusion_lab.interop FILE [group=option ...] [key=value ...] [out=DIRECTORY]

FILE is one of
  checkpoint_24.pth     of score_sde_pytorch: NCSN++, DDPM++, DDPM; the average is read by position
  checkpoint.pth        of ncsn or ncsnv2
  ckpt.pth              of ddim, or weights of DDPM in its layout
  diffusion_pytorch_model.safetensors or .bin   of diffusers: the unet of a DDPM pipeline
It is never executed: what is more than tensors, numbers and containers is refused.

The rest is what train.py would be given to train such a model; the file does not hold it.
  experiment=score_sde/ncsnpp_continuous        a row of a paper's table, or
  model=score_sde sde=ve data=cifar10           NCSN++ of the continuous VE SDE
  model=ncsn data=cifar10                       model=ncsnv2 data=cifar10
  model=ddpm data=cifar10                       DDPM, from ddim or diffusers
Set network.channels=..., network.multipliers=... and the like where the weights differ from these.
  out=DIRECTORY         where it goes; logs/imported/NAME-OF-THE-FILE otherwise

Then:  python sample.py ckpt_path=DIRECTORY num_samples=64          see python sample.py --help
"""
USED = (("model", "network", "sampler", "schedule", "loss", "likelihood", "optimizer", "sde", "callback"),)
"""Parts of a training's configuration that a checkpoint is imported by: its data need not be here."""


def main(arguments: Sequence[str]) -> None:
    """Import one file as the arguments say; exits with status 2 and one line on standard error if refused."""
    tolerant()
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    file, *rest = arguments
    try:
        if "=" in file and not Path(file).exists():
            raise ConfigError(f"{file} is no file: the checkpoint comes first, then model=... and data=...")
        from diffusion_lab.config.compose import check

        out = [argument.removeprefix("out=") for argument in rest if argument.startswith("out=")]
        overrides = only_overrides([word for word in rest if not word.startswith("out=")], "interop")
        check("train", overrides, used=USED)
        # Imported here: torch and Lightning take seconds, and a mistyped word must not wait for them.
        with quick_imports():
            from diffusion_lab.run.import_checkpoint import import_checkpoint

        import_checkpoint(file, overrides, *out[-1:])
    except ConfigError as error:
        refuse(error)
