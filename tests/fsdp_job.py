"""Trainings of a network that is dealt to two CPU processes, as `python tests/fsdp_job.py FOLDER` (a job of the tests).

FOLDER/alone is the run of one process; each rank tells what it saw in FOLDER/rank_<r>.pt.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from diffusion_lab.callback import EMA, Checkpoint, PostHocEMA, RankSeed
from diffusion_lab.callback.ema import averaged
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.data import Digits
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import Model
from diffusion_lab.model.sharding import Sharded, full, shard
from diffusion_lab.network import MLP, NCSNpp, RefineNet, UNet
from diffusion_lab.noise import image_generators
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO

WORLD, STOP, STEPS, SAMPLES = 2, 2, 4, 5
UNET = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "groups": 2, "dropout": 0.0}
MODEL = {
    "_target_": "diffusion_lab.model.DDPM",
    "network": {"_target_": "diffusion_lab.network.UNet", "in_channels": 1, "image_size": 8, **UNET},
    "schedule": {"_target_": "diffusion_lab.process.Linear"},
    "loss": {"_target_": "diffusion_lab.loss.DenoisingLoss"},
    "sampler": {
        "_target_": "diffusion_lab.sampler.Sampler",
        "predictor": {"_target_": "diffusion_lab.sampler.DDIM", "eta": 1.0},
        "steps": 3,
        "clip": True,
    },
    "likelihood": {
        "_target_": "diffusion_lab.likelihood.FlowLikelihood",
        "rtol": 10.0,
        "atol": 10.0,
        "precision": "float64",
    },
    # Its fused kernel trusts that parameters and moments lie in memory alike; eps keeps rounding errors from growing.
    "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01, "eps": 0.01, "fused": True},
    "shape": [1, 8, 8],
    "grey_levels": 17,
    "warmup_steps": 2,
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(width=16, depth=2), (2,)),
    "unet": (lambda: UNet(1, 8, **UNET, checkpoint=True).to(memory_format=torch.channels_last), (1, 8, 8)),
    "ncsnpp": (lambda: NCSNpp(1, 8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.0), (1, 8, 8)),
    "ncsn": (lambda: RefineNet(1, 8, channels=4, multipliers=(1, 2), dilations=(1, 2), blocks=1, levels=3), (1, 8, 8)),
}


class OfItem(DenoisingLoss):
    """The training loss at a time and with a noise that the image decides, in whatever batch and on whatever rank."""

    def __call__(self, denoiser: Denoiser, x0: Tensor, generator: Any = None) -> Tensor:
        where = torch.sin(x0.flatten(1) @ torch.linspace(1, 9, x0[0].numel())).square()
        t = denoiser.process.timesteps(None).sort().values[(999 * where).long()]
        return self.at(denoiser, x0, t, torch.sin(1e3 * x0 + 1))


class Watch(pl.Callback):
    """Notes gradient norms, validations and, where it `draws`, samples and likelihoods of one rank alone."""

    def __init__(self, draws: bool) -> None:
        self.draws = draws
        self.seen: dict[str, Any] = {"norms": [], "losses": [], "batches": []}

    def on_before_zero_grad(self, trainer, model, optimizer):
        if model.grad_norm is not None:
            self.seen["norms"].append(float(model.grad_norm))

    def on_validation_end(self, trainer, model):
        self.seen["losses"].append(float(trainer.callback_metrics["val/loss"]))
        self.seen["batches"].append(len(model._held_out_losses))

    def on_train_end(self, trainer, model):
        if not self.draws:
            return
        with averaged(trainer, model):
            if trainer.is_global_zero:  # the other draws nothing, and waits for nothing
                self.seen["samples"] = torch.cat([model.sample(1, first=i) for i in range(SAMPLES)])
                self.seen["likelihood"] = likelihood(model)


def likelihood(model: Model) -> Tensor:
    """Exact, of a few images; it differentiates through the network with respect to them."""
    images = 2 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    with model.evaluating():
        return model.likelihood["flow"](model.denoiser, images, 17, image_generators(0, range(4))).log_likelihood


class Noted(AtomicCheckpointIO):
    """Remembers what it has written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        self.written.append(Path(path).name)


def spread(network: nn.Module) -> nn.Module:
    """The network without zeros, where a gradient would be zero too."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return network


def model() -> Model:
    torch.manual_seed(0)
    found = instantiate(MODEL)
    spread(found.network)
    found.loss, found.config = OfItem(), {"model": MODEL}
    return found


def train(folder: Path, steps: int, ckpt: Path | None = None, strategy: Any = "auto", devices: int = 1):
    """(checkpoint, what was seen) of a run of `steps` steps, saved and validated every STOP steps."""
    watch, network, ema, io = Watch(draws=ckpt is None), model(), EMA(0.9), Noted()
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=devices, strategy=strategy, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0, val_check_interval=STOP, check_val_every_n_epoch=None, inference_mode=False,
        gradient_clip_val=0.5, default_root_dir=folder, plugins=[io],
        callbacks=[
            RankSeed(3), ema, PostHocEMA(str(folder), 1), Checkpoint(str(folder), every_n_steps=STOP, keep=None), watch
        ],
    )  # fmt: skip
    data = Digits(batch_size=8, eval_batch_size=198)  # 397 held out: the first of two ranks has one batch more
    trainer.fit(network, datamodule=data, ckpt_path=ckpt, weights_only=True)
    held = {
        "parameters": network.network.parameters(),
        "moments": [state["exp_avg"] for state in trainer.optimizers[0].state.values()],
        "average": ema.weights.values(),
    }
    watch.seen |= {"held": {name: size(tensors) for name, tensors in held.items()}, "written": io.written}
    return file(folder, steps), watch.seen


def size(tensors: Iterable[Tensor]) -> int:
    """Numbers for which a rank has memory."""
    own = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.untyped_storage().nbytes() // t.element_size() for t in own)


def file(folder: Path, step: int) -> Path:
    return folder / f"checkpoints/step_{step:08d}.ckpt"


def gradients(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Of a loss, summed over batches."""
    for x, t in batches:
        (network(x, t) - x.sin()).square().flatten(1).sum(1).mean().backward()
    return {name: full(p.grad) for name, p in network.named_parameters() if p.grad is not None}


def differences(rank: int) -> dict[str, float]:
    """By how much gradients of a network that is dealt differ, relative to the largest of a parameter's; NaN if one lacks."""
    found = {}
    for name, (make, shape) in NETWORKS.items():
        torch.manual_seed(0)
        alone, dealt = spread(make()), make()
        dealt.load_state_dict(alone.state_dict())
        shard(dealt, init_device_mesh("cpu", (WORLD,)))
        batches = [(torch.randn(4, *shape), torch.tensor([0.0, 2.0, 1.0, 1.0])) for _ in range(2)]
        wanted = gradients(alone, batches)
        got = gradients(dealt, [(x[rank::WORLD], t[rank::WORLD]) for x, t in batches])
        nothing = torch.tensor(float("nan"))
        found[name] = max(float((g - got.get(n, nothing)).abs().max() / g.abs().max()) for n, g in wanted.items())
    return found


def job(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": WORLD}
    os.environ |= {name: str(value) for name, value in here.items()}
    starts = {"unbroken": None, "resumed": file(folder / "unbroken", STOP), "of_one": file(folder / "alone", STOP)}
    seen = {name: train(folder / name, STEPS, at, Sharded(), WORLD)[1] for name, at in starts.items()}
    torch.save({**seen, "differences": differences(rank)}, folder / f"rank_{rank}.pt")


def main(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(job, (folder, port), nprocs=WORLD, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
