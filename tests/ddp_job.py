"""Trainings on two CPU processes, as `python tests/ddp_job.py FOLDER` (a job of tests/test_ddp.py, which runs them on one).

Each leaves what it saw in FOLDER/<name>_rank<r>.pt.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import zlib
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp

from diffusion_lab.callback import EMA, Checkpoint, Interrupt, RankSeed
from diffusion_lab.callback.interrupt import Stopped
from diffusion_lab.data import Digits
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import ConsistencyLoss, ContrastiveLoss, DenoisingLoss, KarrasPairs, LossSecondMoment
from diffusion_lab.model import DDPM, Model, ScoreMatching, ScoreSDE
from diffusion_lab.network import Energy, UNet
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, Geometric, Linear
from diffusion_lab.sampler import DDIM, AnnealedLangevin, Sampler
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO

STEPS, TOLD, STOPPED = 10, 3, 5
"""Of a training; in which of them the first rank is told to stop, and after which all do: two steps later.

An epoch of 1400 digits has 7 batches of 200, so they stop within one."""


class Buffered(UNet):
    """A network with a buffer, as those that resample by filters have."""

    def __init__(self, dropout: float) -> None:
        super().__init__(1, 8, channels=8, multipliers=(1, 1), blocks=1, attention=(), groups=2, dropout=dropout)
        self.register_buffer("kernel", torch.ones(3))


class ByItem(DenoisingLoss):
    """Draws times and noise by the contents of each image, unless told how: it does not matter which rank has it."""

    def __call__(self, denoiser, x0, generator=None, **condition):
        if generator is None:
            words = [zlib.crc32(image.contiguous().numpy().tobytes()) for image in x0]
            generator = [torch.Generator().manual_seed(word) for word in words]
        return super().__call__(denoiser, x0, generator)


class Noted(DenoisingLoss):
    """Keeps the times and the noise that it draws while training."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def at(self, denoiser, x0, t, eps, **condition):
        if denoiser.training:
            self.seen.append((t, eps))
        return super().at(denoiser, x0, t, eps, **condition)


class Watch(pl.Callback):
    """Keeps the gradients of every optimiser step, and the loss of every validation."""

    def __init__(self) -> None:
        self.gradients, self.validations = [], []

    def on_before_optimizer_step(self, trainer, model, optimizer):
        self.gradients.append({name: p.grad.clone() for name, p in model.network.named_parameters()})

    def on_validation_end(self, trainer, model):
        self.validations.append(trainer.callback_metrics["val/loss"].item())


class Signalled(pl.Callback):
    """Sends SIGTERM to the first rank's process, in the middle of a step."""

    def on_before_optimizer_step(self, trainer, model, optimizer):
        if trainer.global_step == TOLD - 1 and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)


def build(loss: DenoisingLoss, dropout: float = 0.0, levels: int = 1000) -> DDPM:
    torch.manual_seed(0)
    network = Buffered(dropout)
    with torch.no_grad():
        for p in network.parameters():  # the last layers start at almost zero, which would hide the others
            p.add_(0.1 * torch.randn_like(p))
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-3)  # noqa: E731
    options = {"warmup_steps": 3, "levels": levels}
    model = DDPM(network, Linear(), loss, Sampler(DDIM(), steps=2), None, adam, (1, 8, 8), 17, **options)
    model.config = {}
    return model


def build_energy() -> ScoreMatching:
    """A model whose loss keeps samples, as many as it has room for after two steps."""
    torch.manual_seed(0)
    sampler = Sampler(corrector=AnnealedLangevin(snr=0.2, steps=1), steps=1)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-3)  # noqa: E731
    model = ScoreMatching(
        Energy(Buffered(0.0)), ContrastiveLoss(2, replay_size=150), sampler, None, adam, (1, 8, 8), 17
    )
    model.config = {}
    return model


def build_moments() -> DDPM:
    """A model whose times follow the last losses of each level."""
    return build(DenoisingLoss(time_law=LossSecondMoment(10, history=2)), levels=10)


def build_consistency() -> ScoreSDE:
    """A student with dropout, a teacher, and a target that is an average."""
    torch.manual_seed(0)
    process, adam = VE(Geometric(0.002, 80.0)), lambda parameters: torch.optim.Adam(parameters, lr=1e-3)
    teacher = Denoiser(Buffered(0.2), process, Parameterization("scaled_score", "log_sigma"))
    loss = ConsistencyLoss(KarrasPairs(2, 20, total_steps=STEPS), teacher, target_decay=0.9)
    row = {"output": "scaled_score", "c_noise": "log_sigma", "unit_input": True}
    sampler = Sampler(DDIM(), steps=2)
    model = ScoreSDE(Buffered(0.2), process, loss, sampler, None, adam, (1, 8, 8), 17, **row)
    model.config = {}
    return model


def trainer(folder: Path, world: int, steps: int, *callbacks: pl.Callback, **changes) -> pl.Trainer:
    options = dict(limit_val_batches=0, logger=False, plugins=[AtomicCheckpointIO()]) | changes
    return pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, check_val_every_n_epoch=None, default_root_dir=folder,
        callbacks=[RankSeed(3), EMA(0.9, warmup=True), *callbacks], **options,
    )  # fmt: skip


def gradients(folder: Path, world: int, accumulate: int, compiled: bool = False) -> list[dict[str, torch.Tensor]]:
    """The gradients of two optimiser steps on batches of 8 images."""
    watch, model = Watch(), build(ByItem())
    if compiled:
        model.network.compile(backend="aot_eager")  # all of it but the translation to C++
    run = trainer(folder, world, 2, watch, accumulate_grad_batches=accumulate)
    run.fit(model, datamodule=Digits(batch_size=8))
    return watch.gradients


def validations(folder: Path, world: int, batch_size: int) -> list[float]:
    """The losses of two validations, each on 397 held-out digits."""
    watch = Watch()
    run = trainer(folder, world, 2, watch, limit_val_batches=1.0, val_check_interval=1)
    run.fit(build(ByItem()), datamodule=Digits(batch_size=8, eval_batch_size=batch_size))
    return watch.validations


def trained(
    folder: Path, world: int, *more: pl.Callback, resume: Path | None = None, model: Model | None = None
) -> dict:
    """What this rank has after a training that ends with `folder/checkpoints/step_<STEPS>.ckpt`, unless it is stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    model, data = model or build(Noted(), dropout=0.2), Digits(batch_size=200)
    saving = [Interrupt(str(folder)), Checkpoint(str(folder), every_n_steps=1000, keep=None)]
    run = trainer(folder, world, STEPS, *saving, *more)
    try:
        run.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
        stopped = None
    except Stopped as message:
        stopped = str(message)
    ema = next(c for c in run.callbacks if isinstance(c, EMA)).weights
    kept = {name: getattr(model.loss, name, None) for name in ("seen", "replay")}
    kept["losses"] = getattr(getattr(model.loss, "time_law", None), "losses", None)
    kept["target"] = model.loss.target.state_dict() if hasattr(model.loss, "target") else None
    return {"weights": model.network.state_dict(), "ema": ema, "stopped": stopped, **kept}


def rank(number: int, world: int, folder: Path, port: int) -> None:
    """All that is done on two ranks, one after the other."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    seen = {f"gradients_{n}": gradients(folder / "gradients", world, n) for n in (1, 2)}
    seen["gradients_compiled"] = gradients(folder / "gradients", world, 1, compiled=True)
    seen |= {f"validations_{n}": validations(folder / "validations", world, n) for n in (500, 198)}
    seen["whole"] = trained(folder / "whole", world)
    seen["broken"] = trained(folder / "broken", world, Signalled())
    torch.manual_seed(99 + number)  # as a new process would
    seen["resumed"] = trained(folder / "resumed", world, resume=folder / f"broken/checkpoints/step_{STOPPED:08d}.ckpt")
    for kind, made in (("energy", build_energy), ("moments", build_moments), ("consistency", build_consistency)):
        for name, more, path in (("whole", [], None), ("broken", [Signalled()], None), ("resumed", [], "broken")):
            last = path and folder / f"{kind}_{path}/checkpoints/step_{STOPPED:08d}.ckpt"
            seen[f"{kind}_{name}"] = trained(folder / f"{kind}_{name}", world, *more, resume=last, model=made())
            torch.manual_seed(99 + number)
    torch.save(seen, folder / f"rank{number}.pt")


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(rank, (2, Path(sys.argv[1]), port), nprocs=2, start_method="fork")
