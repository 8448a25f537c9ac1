"""The command `python -m diffusion_lab.referee`; `diffusion-lab referee` where the package is installed."""

import sys

from diffusion_lab.run.referee import main

if __name__ == "__main__":
    main(sys.argv[1:])
