"""A run that was stopped and went on ends bit-equal to one that never was."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from diffusion_lab.callback import EMA, Checkpoint, Interrupt, PostHocEMA, RankSeed
from diffusion_lab.callback.interrupt import Stopped
from diffusion_lab.data import Toy2D
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import ConsistencyLoss, ContrastiveLoss, DenoisingLoss, KarrasPairs
from diffusion_lab.model import DDPM, ScoreMatching, ScoreSDE
from diffusion_lab.network import MLP, Energy
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, Geometric, Linear
from diffusion_lab.sampler import DDIM, AnnealedLangevin, Sampler


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


def points_model() -> DDPM:
    return DDPM(
        Noisy(), Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2), None,
        lambda p: torch.optim.Adam(p, lr=0.01), (2,), grey_levels=None, warmup_steps=3,
    )  # fmt: skip


def energy_model() -> ScoreMatching:
    """A model whose loss keeps samples of earlier steps, two batches and one sample."""
    network, sampler = Energy(MLP(width=16, depth=1)), Sampler(corrector=AnnealedLangevin(snr=0.2, steps=2), steps=1)
    loss, adam = ContrastiveLoss(2, replay_size=17, reinit=0.3), lambda p: torch.optim.Adam(p, lr=0.01)
    return ScoreMatching(network, loss, sampler, optimizer=adam)


def consistency_model() -> ScoreSDE:
    """A student with a teacher and an averaged target, whose numbers of timesteps and decay change as it trains."""
    process, row = VE(Geometric(0.002, 80.0)), {"output": "scaled_score", "c_noise": "log_sigma", "unit_input": True}
    generator, teacher = torch.Generator().manual_seed(5), Denoiser(Noisy(), process, Parameterization(**row))
    with torch.no_grad():
        for p in teacher.parameters():  # the same in every process
            p.normal_(0, 0.1, generator=generator)
    loss = ConsistencyLoss(KarrasPairs(2, 20, total_steps=11), teacher, target_decay=0.9)
    adam, sampler = lambda p: torch.optim.Adam(p, lr=0.01), Sampler(DDIM(), steps=2)
    return ScoreSDE(Noisy(), process, loss, sampler, None, adam, (2,), None, **row)


def train(folder, steps: int, ckpt: str | None = None, meanwhile: int = 2, save: int = 1, validate: int | None = None,
          accumulate: int = 1, more: tuple = (), first: tuple = (), overfit: int = 0, build=points_model):  # fmt: skip
    """The last checkpoint of a run of `steps` steps on a set of 50 points in batches of 8: an epoch ends within."""
    torch.manual_seed(1 if ckpt is None else 99)  # what a new process draws before it loads
    model = build()
    model.config = {"trainer": {"accumulate_grad_batches": accumulate}}
    data = Toy2D(train_size=50, held_out_size=20, batch_size=8, eval_batch_size=5)
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        val_check_interval=validate, check_val_every_n_epoch=None, accumulate_grad_batches=accumulate,
        limit_val_batches=1.0 if validate else 0, default_root_dir=folder, overfit_batches=overfit,
        callbacks=[*first, RankSeed(3), EMA(0.9, warmup=True), PostHocEMA(str(folder), 2), Interrupt(str(folder)), Checkpoint(str(folder), every_n_steps=save, keep=None), Meanwhile(meanwhile), *more],
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
SAVED = (*STATE, "posthoc_averages")


@pytest.mark.parametrize("stop", [1, 6, 7])  # the first step, just before and just after the end of an epoch
@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_and_resumed_is_bit_equal_to_unbroken(tmp_path, stop, accumulate):
    whole = train(tmp_path / "whole", 11, accumulate=accumulate)
    train(tmp_path / "part", stop, accumulate=accumulate)
    resumed = train(tmp_path / "rest", 11, tmp_path / f"part/checkpoints/step_{stop:08d}.ckpt", accumulate=accumulate)
    assert_bit_equal({k: whole[k] for k in SAVED}, {k: resumed[k] for k in SAVED})


@pytest.mark.parametrize("stop", [1, 7])
@pytest.mark.parametrize("build", [energy_model, consistency_model], ids=["energy", "consistency"])
def test_a_loss_with_a_state_of_its_own_resumes_with_it(tmp_path, stop, build):
    whole = train(tmp_path / "whole", 11, build=build, accumulate=2, validate=3)
    train(tmp_path / "part", stop, build=build, accumulate=2, meanwhile=1, validate=2)
    path = tmp_path / f"part/checkpoints/step_{stop:08d}.ckpt"
    resumed = train(tmp_path / "rest", 11, path, build=build, accumulate=2)
    assert_bit_equal({k: whole[k] for k in (*SAVED, "loss")}, {k: resumed[k] for k in (*SAVED, "loss")})
    if build is energy_model:
        assert whole["loss"]["replay"].shape == (17, 2) and whole["loss"]["replay"].unique(dim=0).shape == (17, 2)
    else:
        assert whole["loss"]["updates"] == 11 and whole["loss"]["target"].keys() == Noisy().state_dict().keys()


def test_what_happens_beside_training_does_not_change_it(tmp_path):
    quiet = train(tmp_path / "quiet", 9, meanwhile=100, save=9)
    busy = train(tmp_path / "busy", 9, meanwhile=1, save=2, validate=3)
    assert_bit_equal({k: quiet[k] for k in SAVED}, {k: busy[k] for k in SAVED})


def test_on_another_number_of_ranks_each_draws_anew(tmp_path):
    path = tmp_path / "part/checkpoints/step_00000004.ckpt"
    saved = train(tmp_path / "part", 4)
    same = train(tmp_path / "same", 6, path)
    saved["random"] *= 2  # as of two ranks
    torch.save(saved, path)
    other = train(tmp_path / "other", 6, path)
    assert not torch.equal(
        same["ema"]["weights"]["inner.linear_out.weight"], other["ema"]["weights"]["inner.linear_out.weight"]
    )
    assert len(same["random"]) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("inside, last", [(True, 6), (False, 5)])
def test_a_signal_saves_the_step_and_the_resumed_run_is_bit_equal(tmp_path, signum, inside, last):
    whole = train(tmp_path / "whole", 9)
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    with pytest.raises(Stopped, match=f"{signal.Signals(signum).name} at step {last}"):
        train(tmp_path / "part", 9, save=100, more=[Signalled(5, inside, signum)])
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before, (
        "handlers are put back"
    )
    assert [p.name for p in (tmp_path / "part/checkpoints").iterdir()] == [f"step_{last:08d}.ckpt"]
    resumed = train(tmp_path / "rest", 9, tmp_path / f"part/checkpoints/step_{last:08d}.ckpt")
    assert_bit_equal({k: whole[k] for k in SAVED}, {k: resumed[k] for k in SAVED})


def test_a_hangup_that_nohup_has_had_ignored_stops_nothing(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        whole, part = (
            train(tmp_path / "whole", 3),
            train(tmp_path / "part", 3, more=[Signalled(2, True, signal.SIGHUP)]),
        )
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_bit_equal({k: whole[k] for k in SAVED}, {k: part[k] for k in SAVED})


@pytest.mark.parametrize("first, second", [(signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP)])
def test_a_hangup_and_what_the_first_rank_passes_on_are_one_signal(tmp_path, first, second):
    class Both(Signalled):
        def on_before_optimizer_step(self, trainer, model, optimizer):
            if trainer.global_step == 3:
                os.kill(os.getpid(), first)
                os.kill(os.getpid(), second)

    with pytest.raises(Stopped, match=f"{first.name} at step 4"):
        train(tmp_path, 9, save=100, more=[Both(3, True, first)])


def test_a_second_signal_stops_at_once(tmp_path):
    class Twice(Signalled):
        def on_before_optimizer_step(self, trainer, model, optimizer):
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):  # Lightning's answer to a KeyboardInterrupt
        train(tmp_path, 9, save=100, more=[Twice(3, True, signal.SIGINT)])
    assert not (tmp_path / "checkpoints").exists()


class Early(pl.Callback):
    """Sends this process SIGTERM before the callback that answers it is told of the step, or of the training at all."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_start(self, trainer, model):
        if self.step is None:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step, last", [(5, 5), (None, 0)])
def test_a_signal_between_two_steps_or_before_the_first_loses_no_batch(tmp_path, step, last):
    whole = train(tmp_path / "whole", 9)
    with pytest.raises(Stopped, match=f"SIGTERM at step {last}"):
        train(tmp_path / "part", 9, save=100, first=[Early(step)])
    resumed = train(tmp_path / "rest", 9, tmp_path / f"part/checkpoints/step_{last:08d}.ckpt")
    assert_bit_equal({k: whole[k] for k in SAVED}, {k: resumed[k] for k in SAVED})


class Validations(pl.Callback):
    """(step, loss) of every validation; on request stops in the middle of that of a step, or right before it."""

    def __init__(self, step: int = -1, inside: bool = True) -> None:
        self.step, self.inside, self.seen = step, inside, []

    def on_validation_batch_end(self, trainer, model, outputs, batch, batch_idx, dataloader_idx=0):
        if self.inside and trainer.global_step == self.step and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        if not self.inside and trainer.global_step == self.step:
            raise RuntimeError("dies after the checkpoint")

    def on_validation_end(self, trainer, model):
        self.seen.append((trainer.global_step, trainer.callback_metrics["val/loss"].item()))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_validation_that_was_due_is_made_in_full_by_the_run_that_goes_on(tmp_path, inside, accumulate):
    runs = [Validations(), Validations(6, inside), Validations()]
    options = {"validate": 3 * accumulate, "accumulate": accumulate}
    whole = train(tmp_path / "whole", 9, more=[runs[0]], **options)
    with pytest.raises(Stopped if inside else RuntimeError):
        train(tmp_path / "part", 9, more=[runs[1]], **options)
    resumed = train(tmp_path / "rest", 9, tmp_path / "part/checkpoints/step_00000006.ckpt", more=[runs[2]], **options)
    assert [step for step, _ in runs[0].seen] == [3, 6, 9]
    assert runs[1].seen + runs[2].seen == runs[0].seen
    assert_bit_equal({k: whole[k] for k in SAVED}, {k: resumed[k] for k in SAVED})
    again = Validations()
    train(tmp_path / "again", 9, tmp_path / "whole/checkpoints/step_00000007.ckpt", more=[again], **options)
    assert again.seen == runs[0].seen[2:]


def test_a_run_on_one_batch_goes_on_with_it(tmp_path):
    whole = train(tmp_path / "whole", 6, overfit=1)
    train(tmp_path / "part", 3, overfit=1)
    resumed = train(tmp_path / "rest", 6, tmp_path / "part/checkpoints/step_00000003.ckpt", overfit=1)
    assert_bit_equal({k: whole[k] for k in SAVED}, {k: resumed[k] for k in SAVED})


def test_the_same_images_in_other_parts_are_the_same_images(tmp_path):
    """Steps of 1 x 8 images, then of 2 x 8: no step is cut in two, and the data order goes on where it was."""

    class Batches(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            self.seen.append((trainer.global_step, batch[0].sum().item()))

    seen, later = Batches(), Batches()
    train(tmp_path / "part", 9, first=[seen])
    train(tmp_path / "rest", 8, tmp_path / "part/checkpoints/step_00000005.ckpt", accumulate=2, first=[later])
    assert [step for step, _ in later.seen] == [5, 5, 6, 6, 7, 7]
    assert [total for _, total in later.seen[:4]] == [total for _, total in seen.seen[5:9]]


def test_what_is_damaged_ahead_does_not_cost_what_is_whole(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (7, 8):
        (folder / f"step_{step:08d}.ckpt").write_bytes(b"cut")
    saving = Checkpoint(str(tmp_path), keep=2)
    for step in (4, 5, 6):
        trainer = SimpleNamespace(
            global_step=step, loggers=[], is_global_zero=True, save_checkpoint=lambda path: path.write_bytes(b"whole")
        )
        saving.save(trainer)
    assert [int(path.stem[5:]) for path in sorted(folder.iterdir())] == [5, 6, 7, 8]


def test_what_is_forked_from_a_training_does_not_answer_for_it(tmp_path, capfd):
    """A worker of a data loader dies of SIGTERM, and nobody is told to stop."""

    class Forks(pl.Callback):
        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            if trainer.global_step == 2:
                child = os.fork()
                if child == 0:
                    time.sleep(20)
                    os._exit(0)
                time.sleep(0.2)
                os.kill(child, signal.SIGTERM)
                self.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    forks = Forks()
    train(tmp_path, 4, first=[forks])
    assert forks.status == -signal.SIGTERM and "SIGTERM" not in capfd.readouterr().out
