"""The command `python -m diffusion_lab.verify`: a sampler against exact laws."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from diffusion_lab.cli import command
from diffusion_lab.config.command_line import only_overrides
from diffusion_lab.config.imports import quick_imports

HELP = """\
Hold a sampler against exact laws, on Gaussian data whose best denoiser is known in closed form.

  python -m diffusion_lab.verify sampler=NAME [sampler.key=value ...] [--config-dir DIR]

On VP, VE and DDPM's levels, in float64: it is the same recorded and as written; the network is called as often as
recorded; an image does not depend on its batch; in many steps it draws from the law of the data, mean and standard
deviation; without noise it converges to the probability flow, and how fast.  Exit status 1 if a check fails.
"""


@command(HELP, ValueError)
def main(arguments: Sequence[str]) -> None:
    """Verify the sampler that the arguments name; exit with status 1 if a check fails."""
    overrides = only_overrides(arguments, "verify")
    from diffusion_lab.config.compose import check, composed, plain

    check("train", overrides, used=(("sampler",),))
    settings = plain(composed("train", overrides), overrides)["sampler"]
    # Imported here: torch takes seconds to import, and a typo should be refused at once.
    with quick_imports():
        from diffusion_lab.config.instantiate import instantiate
        from diffusion_lab.verification import check_sampler
    results = []
    for result in check_sampler(instantiate(settings, "sampler")):
        print(result, flush=True)
        results.append(result.passed)
    print(f"{sum(results)} of {len(results)} checks passed")
    sys.exit(not all(results))
