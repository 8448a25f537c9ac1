"""The command `python -m diffusion_lab.stats`; `diffusion-lab stats` where the package is installed."""

import sys

from diffusion_lab.run.stats_command import main

if __name__ == "__main__":
    main(sys.argv[1:])
