"""NaN and infinity: a training stops at the step where they come up, and nothing is drawn or measured from them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp

from diffusion_lab.callback import EMA, Checkpoint, Evaluation, Monitor, NonFiniteGuard, Samples
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.data import Toy2D
from diffusion_lab.data.batches import InMemory
from diffusion_lab.evaluation import Evaluator, SampleStore
from diffusion_lab.finite import NonFinite
from diffusion_lab.likelihood import VariationalBound
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import DDPM
from diffusion_lab.network import MLP
from diffusion_lab.process import Linear
from diffusion_lab.sampler import DDIM, Sampler
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO


class Faulty(torch.nn.Module):
    """A network whose output is spoilt for one image of a batch, from its `calls`-th call on."""

    def __init__(self, calls: float = float("inf"), value: float = torch.inf, image: int = 2) -> None:
        super().__init__()
        self.inner, self.tail = MLP(width=16, depth=1), torch.nn.Identity()
        self.calls, self.value, self.image = calls, value, image
        self.tail.register_forward_pre_hook(self.spoil)

    def spoil(self, module, inputs):
        self.calls -= 1
        factor = torch.ones(len(inputs[0]), 1)
        if self.calls <= 0 and (self.training or self.image < 0):
            factor[self.image] = self.value
        return (inputs[0] * factor,)

    def forward(self, x, t):
        return self.tail(self.inner(x, t))


class Divided(DenoisingLoss):
    """A loss with a term 0 / 0 from its third call on, whose gradient is finite."""

    calls = 0

    def __call__(self, denoiser, x0, generator=None, **condition):
        self.calls += 1
        losses = super().__call__(denoiser, x0, generator, **condition)
        return losses + torch.zeros(()) / (self.calls < 3) if self.calls >= 3 else losses


class Steep(torch.autograd.Function):
    """x, with an infinite derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.inf


class SteepAt(DenoisingLoss):
    """A finite loss whose gradient in one parameter is not, from the third call on."""

    calls = 0

    def __call__(self, denoiser, x0, generator=None, **condition):
        self.calls += 1
        losses = super().__call__(denoiser, x0, generator, **condition)
        bias = denoiser.network.inner.linear_out.bias
        return losses + (Steep.apply(bias).sum() if self.calls >= 3 else 0)


def model_of(network=None, loss=None, lr=1e-3, likelihood=None):
    torch.manual_seed(0)
    model = DDPM(
        network or Faulty(), Linear(), loss or DenoisingLoss(), Sampler(DDIM(), steps=3), likelihood,
        lambda p: torch.optim.Adam(p, lr=lr), (2,), grey_levels=None, levels=10,
    )  # fmt: skip
    model.config, model.rehearsal = {}, False  # which would find some of these faults before the first step
    return model


def trainer_of(folder: Path, steps: int = 6, accumulate: int = 1, more: tuple = (), **options):
    callbacks = [NonFiniteGuard(), EMA(0.9), Monitor(), Checkpoint(str(folder), every_n_steps=1, keep=None), *more]
    return pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        limit_val_batches=0, accumulate_grad_batches=accumulate, default_root_dir=folder, callbacks=callbacks,
        plugins=[AtomicCheckpointIO()], **options,
    )  # fmt: skip


def stopped(folder: Path, model, accumulate: int = 1, data=None, more: tuple = (), **options) -> str:
    """What a training is stopped with."""
    with pytest.raises(NonFinite) as error:
        data = data or Toy2D(train_size=64, held_out_size=20, batch_size=8)
        trainer_of(folder, accumulate=accumulate, more=more, **options).fit(model, datamodule=data)
    assert "\n" not in str(error.value)
    return str(error.value)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def test_the_step_the_image_its_time_and_the_module_are_named_and_no_weight_is_touched(tmp_path):
    model = model_of(Faulty(calls=3))
    message = stopped(tmp_path, model)
    found = re.match(
        r"step 3: the loss is not finite for 1 of 8 images of the batch, image 2 at t=([\d.]+) \(sigma ([\d.]+)\): "
        r"the network's output is not finite, first that of network.tail \(Identity\); "
        r"try optimizer.lr=0.0001 or trainer.gradient_clip_val=1 or trainer.detect_anomaly=true to see the operation$",
        message,
    )
    assert found, message
    t, sigma = map(float, found.groups())
    assert model.denoiser.process.sigma(torch.tensor(t)).item() == pytest.approx(sigma, rel=1e-2)
    assert saved(tmp_path) == ["step_00000001.ckpt", "step_00000002.ckpt"]
    last = torch.load(tmp_path / "checkpoints/step_00000002.ckpt", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, last["state_dict"][name]), "it looks before the optimiser steps"
    assert model.before_clipping is None and not model.denoiser._forward_pre_hooks


def test_data_that_hold_nan_are_named_in_a_step_and_points_before_the_first(tmp_path):
    data = Toy2D(train_size=64, held_out_size=20, batch_size=64)
    data.splits.train.x[17, 1] = torch.nan  # unseen by the check of what is loaded
    assert "1 of 64 images" in (message := stopped(tmp_path, model_of(), data=data))
    assert "the data contain NaN or infinity" in message and not (tmp_path / "checkpoints").exists()
    with pytest.raises(ValueError, match=r"items 17 of 64 hold NaN or infinity"):
        InMemory(data.splits.train.x, data.splits.train.labels)


def test_weights_that_run_away_are_never_saved(tmp_path):
    message = stopped(tmp_path, model_of(lr=1e30))
    assert re.match(
        r"step 1: the weights network\.inner\.\S+, .* are not finite, or their norm is not: they are not", message
    )
    assert "optimizer.lr=1e+29" in message and not saved(tmp_path)


def test_a_term_of_the_loss_itself(tmp_path):
    message = stopped(tmp_path, model_of(loss=Divided()))
    assert message.startswith("step 3: the loss is not finite for 8 of 8 images of the batch, image 0 at t=")
    assert "and 4 more: the network's output is finite: check the terms of the loss" in message
    assert saved(tmp_path) == ["step_00000001.ckpt", "step_00000002.ckpt"]


def test_a_gradient_that_is_not_finite_while_the_loss_is_names_its_parameter(tmp_path):
    for clip in (None, 1.0):  # which spoils every gradient
        message = stopped(tmp_path / str(clip), model_of(loss=SteepAt()), gradient_clip_val=clip)
        assert "step 3: the gradient of network.inner.linear_out.bias is not finite, though the loss is;" in message
        assert ("gradient_clip_val" in message) == (clip is None)


def test_every_batch_of_an_accumulation_counts(tmp_path):
    message = stopped(
        tmp_path, model_of(Faulty(calls=4, value=torch.nan)), accumulate=3
    )  # the first of the second step
    assert (
        message.startswith("step 2: the loss is not finite for 1 of 8 images")
        and "first that of network.tail" in message
    )
    assert saved(tmp_path) == ["step_00000001.ckpt"]


def test_a_healthy_training_is_the_same_and_costs_little(tmp_path):
    model, looked = model_of(), NonFiniteGuard()
    trainer_of(tmp_path).fit(model, datamodule=Toy2D(train_size=64, held_out_size=20, batch_size=8))
    assert len(saved(tmp_path)) == 6
    trainer = SimpleNamespace(precision="32-true", world_size=1, global_step=0)
    loss, model.image_losses, model.grad_norm = torch.ones(()), torch.ones(8), torch.ones(())
    looked._x = looked._t = torch.ones(8)
    times = []
    for _ in range(300):
        begin = time.perf_counter()
        looked.on_before_backward(trainer, model, loss)
        looked.check_step(trainer, model)
        times.append(time.perf_counter() - begin)
    assert sorted(times)[150] < 100e-6  # 20 us on an idle machine


class Late(NonFiniteGuard):
    """A guard that reads what a step was like a step later, as on a device."""

    def on_train_start(self, trainer, model):
        super().on_train_start(trainer, model)
        self.at_once = False


@pytest.mark.parametrize(
    "loss, term", [(Divided, "loss is not finite for 8 of 8"), (SteepAt, "gradient is not finite")]
)
@pytest.mark.parametrize("every", [1, 100])
def test_what_a_device_tells_a_step_later_is_known_before_anything_is_saved(tmp_path, loss, term, every):
    trainer = trainer_of(tmp_path)
    trainer.callbacks[0] = Late()
    trainer.callbacks[3].every_n_steps = every
    with pytest.raises(NonFinite, match=rf"^step 3: the {term}"):
        trainer.fit(model_of(loss=loss()), datamodule=Toy2D(train_size=64, held_out_size=20, batch_size=8))
    assert saved(tmp_path) == (["step_00000001.ckpt", "step_00000002.ckpt"] if every == 1 else [])


def test_the_last_step_is_judged_too(tmp_path):
    trainer = trainer_of(tmp_path, steps=3)
    trainer.callbacks[0] = Late()
    trainer.callbacks[3].every_n_steps = 100
    with pytest.raises(NonFinite, match=r"^step 3: the loss is not finite"):
        trainer.fit(model_of(loss=Divided()), datamodule=Toy2D(train_size=64, held_out_size=20, batch_size=8))
    assert not saved(tmp_path)


# --- two ranks


class OnRank(Divided):
    """A term 0 / 0 in one loss of the second rank, in the first of two batches to its second step."""

    def __call__(self, denoiser, x0, generator=None, **condition):
        losses = DenoisingLoss.__call__(self, denoiser, x0, generator, **condition)
        self.calls += denoiser.training
        wrong = self.calls == 3 and int(os.environ["LOCAL_RANK"]) == 1
        return losses + torch.tensor([0.0, 0.0, torch.nan, 0.0]) if wrong else losses


def one_rank(number: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    options = {"devices": 2, "strategy": "ddp", "accumulate": 2}
    message = {}
    for name, loss, lr in (("loss", OnRank(), 1e-3), ("gradient", SteepAt(), 1e-3), ("weights", None, 1e30)):
        message[name] = stopped(
            folder / name, model_of(MLP(width=16, depth=1) if name == "loss" else None, loss, lr), **options
        )
    model = model_of(Faulty(calls=1, image=-1) if number == 1 else Faulty())  # draws nothing but infinity
    trainer = trainer_of(folder / "draws", 2, more=[Samples(str(folder), every_n_steps=1, count=4)], **options)
    model.loss = lambda denoiser, x0: denoiser.network.inner(x0, torch.ones(len(x0))).square().mean(1)
    trainer.fit(model, datamodule=Toy2D(train_size=64, held_out_size=20, batch_size=8))
    message["steps"] = trainer.global_step
    (folder / f"rank_{number}.json").write_text(json.dumps(message))


def test_two_ranks_stop_at_the_same_step_and_tell_whose_loss_it_was(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if "PYTEST" not in k}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["loss"].startswith(
        "step 2: on rank 1 the loss is not finite for 1 of 4 images of the batch, image 2 at"
    )
    assert "the network's output is finite: check the terms of the loss" in first["loss"]
    assert saved(tmp_path / "loss") == ["step_00000001.ckpt"]
    assert first["gradient"].startswith("step 2: the gradient of network.inner.linear_out.bias is not finite")
    assert first["weights"].startswith("step 1: the weights network.") and not saved(tmp_path / "weights")
    assert first["steps"] == 2 and not list(tmp_path.rglob("*.png"))
    lines = [line for line in done.stdout.splitlines() if "skipped, training continues" in line]
    assert len(lines) == 2 and all("rank 1 failed: NonFinite: samples 3 are not finite" in line for line in lines)


# --- what is drawn and measured


def spoilt(**options):
    """A model whose network gives infinity to the last image of every batch from its second call on."""
    return model_of(Faulty(calls=2, image=-1), **options).eval()


def test_samples_that_are_not_finite_are_never_drawn_and_their_step_is_told(tmp_path):
    with pytest.raises(
        NonFinite,
        match=r"^samples 14 are not finite; sample 14 is not finite from step 1 of the sampler, t=0\.\d+; try",
    ):
        spoilt().sample(3, first=12)
    model = spoilt()
    series = SampleStore(tmp_path, model, batch_size=3)
    with pytest.raises(NonFinite, match="samples 2 are not finite"):
        series.complete(3)
    assert not list(tmp_path.rglob("*.npy"))
    with pytest.raises(NonFinite, match=r"sample 7 is not finite from step 2 of the sampler, t=0.1;"):
        list(spoilt().trajectory(3, first=5))


def test_a_likelihood_that_is_not_finite_is_no_metric(tmp_path):
    data, model = Toy2D(train_size=64, held_out_size=20), spoilt(likelihood={"bound": VariationalBound()})
    data.setup("test")
    evaluator = Evaluator(samples=4, likelihood_samples=8, likelihood_batch_size=4)
    with pytest.raises(NonFinite, match=r"likelihood \(bound\) of held-out items 3 is not finite"):
        evaluator.likelihood(model, data, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_sampler_that_diverges_does_not_end_the_training(tmp_path, capsys):
    model = model_of(lr=1e-3, likelihood={})
    model.sampler = Sampler(Diverging(), steps=3)
    more = [Samples(str(tmp_path), every_n_steps=2), Evaluation(Evaluator(samples=4), str(tmp_path))]
    trainer = trainer_of(tmp_path, more=more)
    trainer.fit(model, datamodule=Toy2D(train_size=64, held_out_size=20, batch_size=8))
    out = capsys.readouterr().out.splitlines()
    assert trainer.global_step == 6 and len(saved(tmp_path)) == 6 and not list(tmp_path.rglob("*.png"))
    left = [re.search(r"[^/]*\.png: samples 0, 1", line) for line in out if "skipped, training continues" in line]
    assert [found[0].partition(":")[0] for found in left] == ["step_00000002.png", "samples.png"]  # of a folder once
    assert any(
        "evaluation at step 6 failed, training continues: samples 0, 1, 2, 3 are not finite" in line for line in out
    )
    assert not (tmp_path / "results.json").exists()


class Diverging(DDIM):
    """DDIM whose steps overflow."""

    def __call__(self, p, x, *others):
        return 1e30 * x + super().__call__(p, x, *others)


def test_the_guard_comes_first_of_those_that_keep_something():
    from test_conf import composed

    names = list(composed("data=toy2d", "network=mlp")["callback"])
    assert names[0] == "guard" and isinstance(
        instantiate({"_target_": "diffusion_lab.callback.NonFiniteGuard"}), NonFiniteGuard
    )


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(one_rank, (Path(sys.argv[1]), port), nprocs=2, start_method="fork")
