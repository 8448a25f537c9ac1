"""Every precision trains; process, loss, EMA and evaluation keep full precision."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from ddp_job import ByItem, Watch, build, trainer
from experiment import composed
from hydra import compose, initialize_config_dir
from pytorch_lightning.plugins import MixedPrecision

from diffusion_lab.callback import EMA
from diffusion_lab.config.compose import CONF
from diffusion_lab.data import Digits
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.network import NCSNpp
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import Cosine, DiscreteProcess, Linear
from diffusion_lab.run import train

FULL, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64


class Dtypes(pl.Callback):
    """Record the dtypes of the first convolution in training, validation and sampling, and of the loss."""

    def __init__(self, model) -> None:
        self.seen, self.phase = {}, "sampling"
        model.network.conv_in.register_forward_hook(self.note)

    def note(self, layer, inputs, output):
        self.seen.setdefault(self.phase, set()).add(output.dtype)

    def on_train_batch_start(self, *_):
        self.phase = "training"

    def on_validation_batch_start(self, *_):
        self.phase = "validating"

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.seen.setdefault("loss", set()).add(outputs["loss"].dtype)
        self.phase = "sampling"
        assert model.sample(2).dtype == FULL and torch.get_default_dtype() == FULL


@pytest.mark.parametrize("precision, weights, training, evaluating", [
    ("32-true", FULL, FULL, FULL),
    ("bf16-mixed", FULL, HALF, FULL),
    ("bf16-true", HALF, HALF, HALF),
    ("64-true", DOUBLE, DOUBLE, DOUBLE),
])  # fmt: skip
def test_every_precision_trains(tmp_path, precision, weights, training, evaluating):
    model, times = build(ByItem()), torch.arange(1, 1001) / 1000
    process, before = model.denoiser.process, [p.clone() for p in model.network.parameters()]
    watch, dtypes = Watch(), Dtypes(model)
    run = trainer(tmp_path, 1, 3, watch, dtypes, precision=precision, limit_val_batches=1, val_check_interval=1)
    run.fit(model, datamodule=Digits(batch_size=8, eval_batch_size=8))
    ema = next(c for c in run.callbacks if isinstance(c, EMA))
    full = torch.promote_types(weights, FULL)
    assert dtypes.seen == {"training": {training}, "validating": {evaluating}, "sampling": {evaluating}, "loss": {full}}
    assert {p.dtype for p in model.network.parameters()} == {weights}
    assert {average.dtype for average in ema.weights.values()} == {full}
    start, now, average = before[0].to(weights), next(model.network.parameters()), next(iter(ema.weights.values()))
    assert not torch.equal(now, start) and not torch.equal(average, start.to(full)), "nothing was learned"
    fresh = DiscreteProcess(Linear(), 1000)
    assert torch.equal(process.alpha(times), fresh.alpha(times)) and process.alpha(times.double()).dtype == DOUBLE
    assert torch.equal(process.sigma(times), fresh.sigma(times)), "a table was rounded"


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """precision -> the gradient of the first step, as one vector."""

    def of(precision: str) -> torch.Tensor:
        watch, folder = Watch(), tmp_path_factory.mktemp(precision)
        run = trainer(folder, 1, 1, watch, precision=precision)
        run.fit(build(ByItem()), datamodule=Digits(batch_size=8))
        return torch.cat([g.double().flatten() for g in watch.gradients[0].values()])

    return of


def test_the_gradient_is_the_same_up_to_the_precision(gradients):
    exact = gradients("32-true")
    error = {p: ((gradients(p) - exact).norm() / exact.norm()).item() for p in ("bf16-mixed", "bf16-true")}
    assert 2**-10 < error["bf16-mixed"] < 2**-5 and 2**-10 < error["bf16-true"] < 2**-5, error


@pytest.mark.parametrize("weighting", ["simple", "min_snr", "v", "likelihood"])
def test_under_autocast_the_loss_is_computed_in_float32(weighting):
    model = build(ByItem())
    denoiser, loss = (
        Denoiser(model.network, DiscreteProcess(Cosine(), 1000), Parameterization("v", "level", -1.0, 1.0)),
        DenoisingLoss(weighting),
    )
    generator, outputs = torch.Generator().manual_seed(0), []
    x0, eps = (torch.randn(6, 1, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([1, 100, 400, 600, 900, 999]) / 1000
    model.network.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        found = loss.at(denoiser, x0, t, eps)
    assert outputs[0].dtype == HALF and found.dtype == FULL
    process, like = denoiser.process, x0.double()
    alpha, sigma = process.marginal(t.double(), like)
    x = alpha * like + sigma * eps
    eps_hat = alpha * outputs[0].double() + sigma * x  # of v = alpha eps - sigma x_0, alpha^2 + sigma^2 = 1
    snr = (alpha / sigma).flatten() ** 2
    weight = {
        "simple": torch.ones(6).double(), "min_snr": (5 / snr).clamp(max=1), "v": (alpha + sigma**2 / alpha).flatten() ** 2,
        "likelihood": (process.g(t.double()) / process.sigma(t.double())) ** 2,
    }[weighting]  # fmt: skip
    want = weight * (eps_hat - eps).square().flatten(1).mean(1)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=0)


def test_fourier_frequencies_stay_in_float32_in_a_bfloat16_network():
    torch.manual_seed(0)
    network = NCSNpp(1, 8, channels=8, multipliers=(1,), blocks=1, attention=(), groups=2).to(HALF)
    assert network(torch.randn(2, 1, 8, 8, dtype=HALF), torch.tensor([0.1, 3.0])).dtype == HALF
    denoiser = Denoiser(network, DiscreteProcess(Linear(), 1000), Parameterization("eps", "level", -1.0, 1.0))
    assert denoiser(torch.randn(2, 1, 8, 8), torch.tensor(0.5)).eps.dtype == FULL


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_overflow_in_16_mixed_count_neither_for_ema_nor_for_warmup(tmp_path, fused):
    """On a CPU this precision must be composed by hand; the initial scale makes a gradient overflow."""
    model, steps = build(ByItem()), 12
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=fused)  # noqa: E731
    model.optimizer, model.warmup_steps = adam, 100
    rows, weights = [], []

    class Rows(pl.Callback):
        def on_train_batch_start(self, trainer, model, *_):
            weights.append([p.detach().clone() for p in model.network.parameters()])

        def on_train_batch_end(self, trainer, model, *_):
            moved = any(not torch.equal(p, q) for p, q in zip(model.network.parameters(), weights[-1]))
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            rows.append((moved, model.updated, ema.updates, rate, model.grad_norm.item()))

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    run = trainer(
        tmp_path, 1, steps, Rows(), plugins=[MixedPrecision("16-mixed", "cpu", scaler)], gradient_clip_val=1.0
    )
    ema = next(c for c in run.callbacks if isinstance(c, EMA))
    run.fit(model, datamodule=Digits(batch_size=8))
    assert run.global_step == steps
    done = 0
    average = [p.clone() for p in weights[0]]
    after = [*weights[1:], [p.detach() for p in model.network.parameters()]]
    for (moved, updated, updates, rate, norm), now in zip(rows, after):
        done += updated
        assert updates == done and rate == pytest.approx(0.01 * done / 100)
        assert updated or not moved
        if updated:
            decay = min(0.9, (1 + done) / (10 + done))
            average = [decay * a + (1 - decay) * p for a, p in zip(average, now)]
            assert 0.05 < norm < 20, "the norm is that of the gradient, not of the scaled one"
    assert 1 <= steps - done <= 8 and done >= 4, "some steps overflowed, and some did not"
    for mine, want in zip(ema.weights.values(), average):
        torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("words, message", [
    (["trainer.precision=16-mixed"], "trainer.precision=16-mixed needs a GPU: here, use bf16-mixed"),
    # How many ranks there are is known to a Trainer only, be it by auto, -1, a string or the starter's environment.
    (["trainer.devices='2'", "data.batch_size=7"], "data.batch_size=7 cannot be split evenly over 2 ranks"),
    (["trainer.devices=auto", "trainer.num_nodes=3", "data.batch_size=7"], "cannot be split evenly over 3 ranks"),
])  # fmt: skip
def test_errors_of_the_trainer_are_reported_in_one_line(tmp_path, words, message):
    made = composed("data=toy2d", "data.train_size=50", "data.held_out_size=10", "trainer.accelerator=cpu", *words)
    with pytest.raises(ConfigError, match=message):
        train.set_up({**made, "choices": {"sampler": "ancestral"}}, tmp_path)


def test_sampling_refuses_an_unsupported_precision():
    from diffusion_lab.run.lightning import build_fabric

    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["ckpt_path=x", "trainer.accelerator=cpu", "trainer.precision=16-mixed"]
        config = compose("sample", words)
    with pytest.raises(ConfigError, match="trainer.precision=16-mixed needs a GPU: here, use bf16-mixed"):
        build_fabric(config.trainer)
