"""The command `python -m diffusion_lab.interop`; `diffusion-lab import` where the package is installed."""

import sys

from diffusion_lab.run.import_command import main

if __name__ == "__main__":
    main(sys.argv[1:])
