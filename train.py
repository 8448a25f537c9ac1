"""Train a model:  python train.py model=ddpm data=digits        python train.py --help"""

from diffusion_lab.launch import main

if __name__ == "__main__":
    main("train")
