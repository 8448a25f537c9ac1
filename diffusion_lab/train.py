"""The command `python -m diffusion_lab.train`: what train.py is in a checkout."""

from diffusion_lab.launch import main

if __name__ == "__main__":
    main("train")
