"""A run that was stopped and went on ends bit-equal to one that never was."""

from __future__ import annotations

import os
import signal
import time

import pytest
import pytorch_lightning as pl
import torch

from diffusion_lab.callback import EMA, Checkpoint, Interrupt, RankSeed
from diffusion_lab.callback.interrupt import Stopped
from diffusion_lab.data import Toy2D
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import DDPM
from diffusion_lab.network import MLP
from diffusion_lab.process import Linear
from diffusion_lab.sampler import DDIM, Sampler


class Noisy(torch.nn.Module):
    """A network with dropout, which draws random numbers while training and none while sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.dropout = MLP(width=16, depth=1), torch.nn.Dropout(0.2)

    def forward(self, x, t):
        return self.dropout(self.inner(x, t))


class Meanwhile(pl.Callback):
    """Samples every `every` steps, as pictures and evaluations do."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        if trainer.global_step % self.every == 0:
            model.sample(3)


def train(folder, steps: int, ckpt: str | None = None, meanwhile: int = 2, save: int = 1, validate: int | None = None,
          accumulate: int = 1, more: tuple = ()):  # fmt: skip
    """The last checkpoint of a run of `steps` steps on a set of 50 points in batches of 8: an epoch ends within."""
    torch.manual_seed(1 if ckpt is None else 99)  # what a new process draws before it loads
    network = Noisy()
    model = DDPM(
        network, Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2), None,
        lambda p: torch.optim.Adam(p, lr=0.01), (2,), grey_levels=None, warmup_steps=3,
    )  # fmt: skip
    model.config = {}
    data = Toy2D(train_size=50, held_out_size=20, batch_size=8, eval_batch_size=20)
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        val_check_interval=validate, check_val_every_n_epoch=None, accumulate_grad_batches=accumulate,
        limit_val_batches=1.0 if validate else 0, default_root_dir=folder,
        callbacks=[RankSeed(3), EMA(0.9, warmup=True), Interrupt(str(folder)), Checkpoint(str(folder), every_n_steps=save, keep=None), Meanwhile(meanwhile), *more],
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return torch.load(folder / f"checkpoints/step_{steps:08d}.ckpt", weights_only=True)


def assert_bit_equal(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_bit_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_bit_equal(x, y, f"{path}/{index}")
    else:
        assert a == b, path


class Signalled(pl.Callback):
    """Sends this process a signal while it trains (in the step) or while it does something else (after it)."""

    def __init__(self, step: int, inside: bool, signum: int) -> None:
        self.step, self.inside, self.signum = step, inside, signum

    def on_before_optimizer_step(self, trainer, model, optimizer):
        if self.inside and trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        if not self.inside and trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)
            time.sleep(0.01)  # Python answers between two steps of its own
            raise AssertionError("goes on after the signal")


STATE = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "random", "Toy2D", "global_step")


@pytest.mark.parametrize("stop", [1, 6, 7])  # the first step, just before and just after the end of an epoch
@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_and_resumed_is_bit_equal_to_unbroken(tmp_path, stop, accumulate):
    whole = train(tmp_path / "whole", 11, accumulate=accumulate)
    train(tmp_path / "part", stop, accumulate=accumulate)
    resumed = train(tmp_path / "rest", 11, tmp_path / f"part/checkpoints/step_{stop:08d}.ckpt", accumulate=accumulate)
    assert_bit_equal({k: whole[k] for k in STATE}, {k: resumed[k] for k in STATE})


def test_what_happens_beside_training_does_not_change_it(tmp_path):
    quiet = train(tmp_path / "quiet", 9, meanwhile=100, save=9)
    busy = train(tmp_path / "busy", 9, meanwhile=1, save=2, validate=3)
    assert_bit_equal({k: quiet[k] for k in STATE}, {k: busy[k] for k in STATE})


def test_on_another_number_of_ranks_each_draws_anew(tmp_path):
    path = tmp_path / "part/checkpoints/step_00000004.ckpt"
    saved = train(tmp_path / "part", 4)
    same = train(tmp_path / "same", 6, path)
    saved["random"] *= 2  # as of two ranks
    torch.save(saved, path)
    other = train(tmp_path / "other", 6, path)
    assert not torch.equal(same["ema"]["weights"]["inner.leave.weight"], other["ema"]["weights"]["inner.leave.weight"])
    assert len(same["random"]) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("inside, last", [(True, 6), (False, 5)])
def test_a_signal_saves_the_step_and_the_resumed_run_is_bit_equal(tmp_path, signum, inside, last):
    whole = train(tmp_path / "whole", 9)
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped, match=f"{signal.Signals(signum).name} at step {last}"):
        train(tmp_path / "part", 9, save=100, more=[Signalled(5, inside, signum)])
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before, "handlers are put back"
    assert [p.name for p in (tmp_path / "part/checkpoints").iterdir()] == [f"step_{last:08d}.ckpt"]
    resumed = train(tmp_path / "rest", 9, tmp_path / f"part/checkpoints/step_{last:08d}.ckpt")
    assert_bit_equal({k: whole[k] for k in STATE}, {k: resumed[k] for k in STATE})


def test_a_second_signal_stops_at_once(tmp_path):
    class Twice(Signalled):
        def on_before_optimizer_step(self, trainer, model, optimizer):
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):  # Lightning's answer to a KeyboardInterrupt
        train(tmp_path, 9, save=100, more=[Twice(3, True, signal.SIGTERM)])
    assert not (tmp_path / "checkpoints").exists()
