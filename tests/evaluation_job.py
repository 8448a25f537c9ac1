"""An evaluation on several CPU processes, as `python tests/evaluation_job.py WORLD FOLDER [SECONDS]` (a job of the tests).

Writes FOLDER/records.json, and a line to FOLDER/draws.log for every chunk drawn; each takes SECONDS longer.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from diffusion_lab import ranks
from diffusion_lab.data import Digits
from diffusion_lab.evaluation import Evaluator
from diffusion_lab.likelihood import FlowLikelihood, VariationalBound
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.metric import ClassifierFeatures
from diffusion_lab.model import DDPM
from diffusion_lab.network import UNet
from diffusion_lab.process import Linear
from diffusion_lab.sampler import DDIM, Sampler

SAMPLES, ITEMS, BATCH, SEED = 37, 7, 5, 1  # divided by no number of ranks


def tiny_model() -> DDPM:
    torch.manual_seed(0)
    network = UNet(1, 8, channels=8, multipliers=(1, 1), blocks=1, attention=(), groups=2)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    likelihood = {"bound": VariationalBound(terms=3), "flow": FlowLikelihood(rtol=0.5, atol=0.5)}
    sampler = Sampler(DDIM(eta=1.0), steps=3, clip=True)
    return DDPM(network, Linear(), DenoisingLoss(), sampler, likelihood, None, (1, 8, 8), grey_levels=17)


def evaluator(folder: Path, **changes) -> Evaluator:
    options = dict(
        samples=SAMPLES, repeats=2, likelihood_samples=ITEMS, likelihood_repeats=2, batch_size=BATCH, seed=SEED
    )
    features = ClassifierFeatures(steps=5)
    return Evaluator(features, **options | {"likelihood_batch_size": 4, "cache": str(folder / "cache")} | changes)


def job(rank: int, world: int, folder: Path, seconds: float) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    model, data = tiny_model(), Digits()
    draw = model.sample

    def logged(count, **options):
        time.sleep(seconds)
        with (folder / "draws.log").open("a") as log:
            log.write(f"{options['first']} {count} {rank}\n")
        return draw(count, **options)

    model.sample = logged
    judge = evaluator(folder)
    judge.prepare(data, torch.device("cpu"))
    records = judge(model, data, folder / "work")
    assert all(others == records for others in ranks.gather(records)), "every rank knows all of it"
    if rank == 0:
        (folder / "records.json").write_text(json.dumps(records))
    if world > 1:
        dist.destroy_process_group()


def main(world: int, folder: Path, seconds: float = 0.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if world == 1:
        job(0, 1, folder, seconds)
    else:
        mp.start_processes(job, (world, folder, seconds), nprocs=world, start_method="fork")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
