"""The command `python -m diffusion_lab.verify`; `diffusion-lab verify` where the package is installed."""

import sys

from diffusion_lab.run.verify_command import main

if __name__ == "__main__":
    main(sys.argv[1:])
