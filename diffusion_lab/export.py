"""The command `python -m diffusion_lab.export`; `diffusion-lab export` where the package is installed."""

import sys

from diffusion_lab.run.export_command import main

if __name__ == "__main__":
    main(sys.argv[1:])
