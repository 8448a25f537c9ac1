"""EMA against recorded official values, and its behaviour in the trainer where the ready-made one fails."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from diffusion_lab.callback import EMA, Checkpoint
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import DDPM
from diffusion_lab.process import Linear
from diffusion_lab.sampler import DDIM, Sampler
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO


class Scalar(torch.nn.Module):
    """One trainable number; as a network it ignores the noise level."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.tensor(value))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x, t):
        self.steps += self.training
        return self.p * x


def model(**changes) -> DDPM:
    torch.manual_seed(0)
    return DDPM(
        Scalar(),
        Linear(),
        DenoisingLoss(),
        Sampler(DDIM(), steps=2),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        shape=(1, 2, 2),
        levels=10,
        **changes,
    )


class Watch(pl.Callback):
    """Notes the weight that validation and test see."""

    def __init__(self, fail: bool = False) -> None:
        self.seen, self.fail = {}, fail

    def on_validation_batch_start(self, trainer, model, *_):
        self.seen["validation"] = model.network.p.item()
        if self.fail:
            raise RuntimeError("in the middle of validation")

    def on_test_batch_start(self, trainer, model, *_):
        self.seen["test"] = model.network.p.item()


def trainer(tmp_path, *callbacks, steps=12, **changes) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps, max_epochs=-1, callbacks=list(callbacks), logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=tmp_path, plugins=[AtomicCheckpointIO()], **changes,
    )  # fmt: skip


def batches(n=12):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.rand(4, 1, 2, 2, generator=generator), torch.zeros(4)) for _ in range(n)]
    return torch.utils.data.DataLoader(data, batch_size=None)


@pytest.mark.parametrize("decay, warmup, key", [
    (0.999, False, "plain_0.999"),
    (0.999, True, "official_0.999_numupdates"),
    (0.9999, True, "official_0.9999_numupdates"),
])  # fmt: skip
def test_updates_are_the_official_ones(recorded, decay, warmup, key):
    official, network, ema = recorded("ema"), Scalar(1.0), EMA(decay, warmup)
    ema.start(network)
    got = []
    for p in official["p"].tolist():
        network.p.data.fill_(p)
        ema.update()
        got.append(ema.weights["p"].item())
    assert (torch.tensor(got) - official[key]).abs().max() < 1e-6


def test_validation_and_test_see_the_average_and_training_gets_its_weights_back(tmp_path):
    ema, watch, m = EMA(0.9), Watch(), model()
    t = trainer(tmp_path, ema, watch, val_check_interval=12, check_val_every_n_epoch=None)
    t.fit(m, batches(), batches(1))
    raw, average = m.network.p.item(), ema.weights["p"].item()
    assert abs(raw - average) > 1e-3
    assert watch.seen["validation"] == pytest.approx(average, abs=1e-6)
    # Lightning's own averaging tests the raw weights here (fit, then test with a checkpoint, same trainer).
    t.save_checkpoint(tmp_path / "a.ckpt")
    t.test(m, batches(1), ckpt_path=tmp_path / "a.ckpt", weights_only=True, verbose=False)
    assert watch.seen["test"] == pytest.approx(average, abs=1e-6)
    assert m.network.p.item() == pytest.approx(raw, abs=1e-7)


def test_average_is_right_by_hand(tmp_path):
    class Trace(pl.Callback):
        values = []

        def on_train_batch_end(self, trainer, model, *_):
            self.values.append(model.network.p.item())

    ema, trace, m = EMA(0.75), Trace(), model()
    trainer(tmp_path, trace, ema).fit(m, batches())
    want = 1.0
    for value in trace.values:
        want = 0.75 * want + 0.25 * value
    assert ema.weights["p"].item() == pytest.approx(want, rel=1e-6) and ema.updates == 12


def test_accumulated_batches_count_as_one_update(tmp_path):
    ema = EMA(0.9)
    trainer(tmp_path, ema, steps=4, accumulate_grad_batches=3).fit(model(), batches())
    assert ema.updates == 4


def test_exception_in_validation_leaves_nothing_exchanged(tmp_path):
    """Lightning's own averaging stores raw and averaged weights exchanged when validation raises."""
    ema, m = EMA(0.9), model()

    class SaveOnException(pl.Callback):
        def on_exception(self, trainer, model, exception):
            assert ema.swapped or saved_last
            trainer.save_checkpoint(tmp_path / "broken.ckpt")

    for saved_last, callbacks in ((True, (ema, SaveOnException())), (False, (SaveOnException(), ema))):
        m = model()
        ema.weights, ema.updates = {}, 0
        t = trainer(tmp_path, *callbacks, Watch(fail=True), val_check_interval=12, check_val_every_n_epoch=None)
        with pytest.raises(RuntimeError, match="in the middle"):
            t.fit(m, batches(), batches(1))
        contents = torch.load(tmp_path / "broken.ckpt", weights_only=True)
        raw, average = m.network.p.item(), ema.weights["p"].item()
        assert abs(raw - average) > 1e-3 and not ema.swapped
        assert contents["state_dict"]["denoiser.network.p"].item() == pytest.approx(raw)
        assert contents["ema"]["weights"]["p"].item() == pytest.approx(average)


def test_resume_continues_the_average(tmp_path):
    whole = EMA(0.9, warmup=True)
    trainer(tmp_path, whole).fit(model(), batches())
    first, second = EMA(0.9, warmup=True), EMA(0.9, warmup=True)
    t = trainer(tmp_path, first, Checkpoint(tmp_path, every_n_steps=6), steps=6)
    t.fit(model(), batches())
    path = tmp_path / "checkpoints" / "step_00000006.ckpt"
    torch.load(path, weights_only=True)
    trainer(tmp_path, second).fit(model(), batches(), ckpt_path=path, weights_only=True)
    assert second.updates == whole.updates == 12
    assert second.weights.keys() == whole.weights.keys() == {"p"}


def test_context_restores_whatever_is_raised_and_buffers_are_left_alone():
    ema, network = EMA(0.5), Scalar(1.0)
    ema.start(network)
    network.p.data.fill_(3.0)
    ema.update()
    with pytest.raises(ZeroDivisionError), ema.averaged(network):
        assert network.p.item() == 2.0
        with ema.averaged(network):  # nested: the outer one restores
            assert network.p.item() == 2.0
        assert network.p.item() == 2.0
        _ = 1 / 0
    assert network.p.item() == 3.0 and set(ema.weights) == {"p"}


def test_average_is_float32_beside_half_precision_parameters():
    ema, network = EMA(0.999), Scalar(1.0).to(torch.bfloat16)
    ema.start(network)
    network.p.data.fill_(2.0)
    for _ in range(10):
        ema.update()
    assert ema.weights["p"].dtype == torch.float32
    assert ema.weights["p"].item() == pytest.approx(2 - 0.999**10, rel=1e-5)  # bfloat16 would stay at 1


def test_decay_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        EMA(1.0)
