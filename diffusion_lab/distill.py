"""The command `python -m diffusion_lab.distill`; `diffusion-lab distill` where the package is installed."""

import sys

from diffusion_lab.launch.distill import main

if __name__ == "__main__":
    main(sys.argv[1:])
