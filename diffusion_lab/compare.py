"""The command `python -m diffusion_lab.compare`; `diffusion-lab compare` where the package is installed."""

import sys

from diffusion_lab.comparison.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
