"""The command `python -m diffusion_lab.stats`: measure reference statistics of a data set or an image folder."""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_lab.cli import command
from diffusion_lab.config.command_line import only_overrides, own_keys
from diffusion_lab.config.imports import quick_imports
from diffusion_lab.errors import ConfigError

HELP = """\
Measure the reference statistics of a data set, for FID and related metrics.

  python -m diffusion_lab.stats data=NAME [split=train] [out=FILE.npz] [count=N] [group=option ...] [key=value ...]

  data=cifar10 split=train                         the reference of published FIDs of CIFAR-10
  data=image_folder data.root=DIR data.shape=[3,32,32] split=all      a folder of images, resized
  metric=inception                                 the features; each data set has its own default
  trainer.devices=8                                use several devices

split is train, held_out, or all (both).  The default of out is logs/statistics/NAME_SPLIT.npz.
The file holds mu and sigma in the usual format, up to 10,000 rows of features for KID, precision and recall, and the
protocol: data, split, count, digest of the images, extractor and its digest.  Statistics are cached by content in
paths.statistics_dir.
"""
USED = (("data",), ("metric",), ("trainer",))
"""Parts of a training configuration that statistics depend on."""


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    """Measure as the arguments say."""
    given, overrides = own_keys(arguments, "split", "out", "count")
    overrides = only_overrides(overrides, "stats")
    split, count = given.get("split", "train"), given.get("count")
    if split not in ("train", "held_out", "all"):
        raise ConfigError(f"split={split} must be one of train, held_out, all")
    if count is not None and (not count.isdigit() or int(count) < 2):
        raise ConfigError(f"count={count} must be a number of images, 2 or more")
    from diffusion_lab.config.compose import check

    check("train", overrides, used=USED)
    # Imported here: torch and Lightning take seconds to import, and a typo should be refused at once.
    with quick_imports():
        from diffusion_lab.run.lightning import quieten
        from diffusion_lab.run.measure import measure

    quieten()
    measure(overrides, split, given.get("out"), None if count is None else int(count))
