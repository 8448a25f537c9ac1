"""The command `python -m diffusion_lab.ema`; `diffusion-lab ema` where the package is installed."""

import sys

from diffusion_lab.launch.posthoc_ema import main

if __name__ == "__main__":
    main(sys.argv[1:])
