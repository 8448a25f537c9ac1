"""`python -m diffusion_lab train ...`: the command `diffusion-lab`."""

from diffusion_lab.cli import main

main()
