"""The command `diffusion-lab verify`: one part against exact answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from diffusion_lab.cli import command
from diffusion_lab.config.command_line import only_overrides, own_keys
from diffusion_lab.config.imports import quick_imports
from diffusion_lab.errors import ConfigError

HELP = """\
Check one part, ours or of your own package, against exact answers; exit status 1 if a check fails.

  diffusion-lab verify KIND=NAME [key=value ...] [out=DIR] [--config-dir DIR]

  sampler=ddim           exact mean and standard deviation on Gaussian data, order of convergence, network evaluations,
                         an image alone and in a batch, float32 and float64, time relative to the network calls
  schedule=cosine        alpha and sigma, beta against automatic differentiation, log-SNR, its ends
  sde=vp                 drift and diffusion against automatic differentiation, the marginal by simulation of the SDE,
                         the prior, transitions and posteriors (with schedule=NAME)
  loss=dsm               its gradient is zero at the exact optimum; batches, times (with model=, time_law=, sde=)
  guidance=classifier_free    the guided score of a mixture in closed form, for every process
  network=unet_small     shapes, gradients, dependence on x and t, independent items, speed (with data=NAME)
  data=digits            range, shape, labels, train and held-out data disjoint, order
  metric=digits          the extractor and the distances on it: identity, symmetry, closed forms (with data=NAME)

  diffusion-lab verify sampler=heun sampler.steps=18
  DIFFUSION_LAB_PACKAGES=my_package diffusion-lab verify loss=mine --config-dir conf

It prints each check with its value, what is expected, and the tolerance, and writes verification.json and pictures to
out, by default logs/verify/KIND_NAME.  Everything is exact or has a fixed seed; speed is only reported.
"""


class Kind(NamedTuple):
    """What a kind of part needs: other groups that may be named with it, and overrides to try in this order."""

    context: tuple[str, ...] = ()
    tries: tuple[tuple[str, ...], ...] = ((),)


ANY_SHAPE = ((), ("data=cifar10",), ("data=toy2d",))
KINDS = {
    "sampler": Kind((), (("data=toy2d",),)),
    "schedule": Kind(),
    "sde": Kind(("schedule",)),
    "loss": Kind(("schedule", "sde", "data"), (("data=toy2d",),)),
    "guidance": Kind(),
    "network": Kind(("data",), ANY_SHAPE),
    "data": Kind(),
    "metric": Kind(("data",)),
}
"""Groups of the configuration whose options can be verified."""

ALSO_VALIDATED = {"network": ("data",), "metric": ("data",)}


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    """Verify the part that the arguments name; exit with status 1 if a check fails."""
    given, overrides = own_keys(arguments, "out")
    overrides = only_overrides(overrides, "verify")
    kind, name = subject(overrides)
    if given.get("out") == "":
        raise ConfigError("out= is empty: give a folder, such as out=logs/verify/mine")
    candidates = fitting(kind, overrides)
    # Imported here: torch takes seconds to import, and a typo should be refused at once.
    with quick_imports():
        from diffusion_lab.run.verify import verify

    out = given.get("out", f"logs/verify/{kind}_{name}")
    refused: list[ConfigError] = []
    for overrides in candidates:
        try:
            sys.exit(not verify(kind, name, overrides, out))
        except ConfigError as error:
            refused.append(error)
    raise refused[0]


def subject(overrides: Sequence[str]) -> tuple[str, str]:
    """(kind, name) of the part that is verified; the other groups that are named must be its context.

    Raises:
        ConfigError: for no part, or several.
    """
    named = dict(word.split("=", 1) for word in overrides if word.partition("=")[0] in KINDS)
    if not named:
        raise ConfigError(f"name the part to verify: one of {', '.join(f'{kind}=NAME' for kind in KINDS)}")
    found = [kind for kind in named if named.keys() - {kind} <= set(KINDS[kind].context)]
    if not found:
        both = ", ".join(f"{kind}={name}" for kind, name in named.items())
        raise ConfigError(f"{both}: verify checks one part at a time: name one of them")
    return found[0], named[found[0]]


def fitting(kind: str, overrides: list[str]) -> list[list[str]]:
    """The overrides with stand-ins for checkpoints, and with each data set that may suit the part, unless one is given.

    Raises:
        ConfigError: if the part's settings are refused.
    """
    from diffusion_lab.config.compose import check, missing_checkpoints

    parts = ((kind, *ALSO_VALIDATED.get(kind, ())),)
    refused: list[ConfigError] = []
    accepted: list[list[str]] = []
    for more in KINDS[kind].tries:
        groups = {word.partition("=")[0] for word in overrides}
        tried = [*(word for word in more if word.partition("=")[0] not in groups), *overrides]
        try:
            check("train", tried, only_names=True)
            tried += [f"{key}=." for key in missing_checkpoints("train", tried, kind)]
            check("train", tried, used=parts)
            accepted += [tried] if tried not in accepted else []
        except ConfigError as error:
            refused.append(error)
    if not accepted:
        raise refused[0]
    return accepted
