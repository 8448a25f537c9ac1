"""Sample from a checkpoint:  python sample.py ckpt_path=last sampler=ddim        python sample.py --help"""

from diffusion_lab.launch import main

if __name__ == "__main__":
    main("sample")
