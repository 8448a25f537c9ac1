"""The command `python -m diffusion_lab.sample`: what sample.py is in a checkout."""

from diffusion_lab.launch import main

if __name__ == "__main__":
    main("sample")
