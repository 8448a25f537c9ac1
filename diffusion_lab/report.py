"""The command `python -m diffusion_lab.report`; `diffusion-lab report` where the package is installed."""

import sys

from diffusion_lab.run.report_command import main

if __name__ == "__main__":
    main(sys.argv[1:])
