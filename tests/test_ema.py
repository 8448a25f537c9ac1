"""EMA against recorded official values, and its behaviour in the trainer where the ready-made one fails; post-hoc EMA."""

from __future__ import annotations

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import zygote

import diffusion_lab
from diffusion_lab.callback import EMA, Checkpoint
from diffusion_lab.callback.posthoc_ema import PowerFunctionAverage
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import DDPM
from diffusion_lab.power_function import Profile, coefficients, gamma_of, inner_products, std_of
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


def test_a_half_life_in_images_and_its_ramp():
    """0.5^(B / min(H, ramp images)) as in EDM's training loop, where the images of the present batch do not count yet."""
    ema = EMA(half_life=500_000, batch_size=512)
    assert [ema.decay_at(n) for n in (0, 1)] == [0, 0]  # the first update copies the parameters
    wanted = [0.5 ** (512 / min(500_000, 0.05 * 512 * (n - 1))) for n in (2, 100, 19_532, 100_000)]
    assert [ema.decay_at(n) for n in (2, 100, 19_532, 100_000)] == pytest.approx(wanted, abs=1e-15)
    constant = EMA(half_life=1000, ramp=0.0, batch_size=10)
    assert constant.decay_at(1) ** 100 == pytest.approx(0.5)


def test_a_half_life_counts_the_images_of_a_step(tmp_path):
    ema = EMA(half_life=1000, ramp=0.0, batch_size=10)
    trainer(tmp_path, ema, steps=1, accumulate_grad_batches=2).fit(model(), batches())
    assert ema.current_decay == pytest.approx(0.5 ** (20 / 1000))
    with pytest.raises(ValueError, match="a half-life in images needs batch_size="):
        trainer(tmp_path, EMA(half_life=1000), steps=1).fit(model(), batches())


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


@pytest.mark.parametrize("options", [{"decay": 0.9, "warmup": True}, {"half_life": 50, "batch_size": 4, "ramp": 0.8}])
def test_resume_continues_the_average(options, tmp_path):
    whole, first, second = EMA(**options), EMA(**options), EMA(**options)
    trainer(tmp_path, whole).fit(model(), batches())
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


def density(profile: Profile, tau: np.ndarray) -> np.ndarray:
    """The profile at times tau."""
    return np.where(tau <= profile.step, (profile.gamma + 1) * (tau / profile.step) ** profile.gamma / profile.step, 0)


def direct(profile: Profile, sequence: torch.Tensor) -> torch.Tensor:
    """The average of a sequence (T, ...) by the integral of the profile over each step."""
    cumulated = (torch.arange(len(sequence) + 1).double().clamp(max=profile.step) / profile.step) ** (profile.gamma + 1)
    return torch.einsum("t,t...->...", cumulated.diff(), sequence)


@pytest.mark.parametrize("std", [0.005, 0.05, 0.1, 0.2, 0.2886])
def test_the_std_is_that_of_the_profile(std):
    gamma, tau = gamma_of(std), (np.arange(1_000_000) + 0.5) / 1e4
    p = density(Profile(gamma, 100), tau) * 1e-4
    mean = (p * tau).sum()
    assert ((p * (tau - mean) ** 2).sum() ** 0.5 / 100, p.sum()) == pytest.approx((std, 1), rel=1e-6)
    assert std_of(gamma) == pytest.approx(std, rel=1e-12)


def test_the_papers_exponents_and_what_is_refused():
    assert (gamma_of(0.05), gamma_of(0.1)) == pytest.approx((16.97, 6.94), abs=5e-3)  # Section 3.1
    for std in (0.0, -0.1, 0.29):
        with pytest.raises(ValueError, match=r"in \(0, 0.2887\], which is that of the uniform average"):
            gamma_of(std)


def test_a_running_average_is_the_integral_over_the_profile():
    network, average = Scalar(0.0).double(), PowerFunctionAverage(0.1)
    average.start(network)
    sequence = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for value in sequence:
        network.p.data.fill_(value)
        average.update()
    assert average.weights["p"].item() == pytest.approx(direct(Profile(average.gamma, 50), sequence).item(), abs=1e-12)


def test_inner_products_are_integrals():
    rows, columns = [Profile(1.5, 10), Profile(7.0, 40)], [Profile(16.0, 25), Profile(0.0, 40), Profile(7.0, 40)]
    tau = (np.arange(400_000) + 0.5) * 1e-4
    integrals = [[(density(a, tau) * density(b, tau)).sum() * 1e-4 for b in columns] for a in rows]
    np.testing.assert_allclose(inner_products(rows, columns), integrals, rtol=1e-3)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.02, 0.03, 0.15, 0.25])
def test_reconstruction_has_the_error_that_is_reported(std):
    steps, every = 200, 10
    stored = [Profile(gamma_of(s), step) for step in range(every, steps + 1, every) for s in (0.05, 0.1)]
    wanted = Profile(gamma_of(std), steps)
    c, error = coefficients(stored, wanted)
    tau = (np.arange(2_000_000) + 0.5) * 1e-4
    difference = sum(k * density(one, tau) for k, one in zip(c.tolist(), stored, strict=True)) - density(wanted, tau)
    norm = ((density(wanted, tau) ** 2).sum() * 1e-4) ** 0.5
    assert c.sum().item() == pytest.approx(1, abs=1e-12)
    assert error == pytest.approx(((difference**2).sum() * 1e-4) ** 0.5 / norm, abs=2e-4)
    for change in torch.eye(len(c), dtype=torch.float64) - 1 / len(c):  # no other sum of 1 is nearer
        matrix, target = inner_products(stored, stored), inner_products(stored, [wanted])[:, 0]
        assert abs(change @ (matrix @ c - target)) < 1e-9
    # A sequence of weights: constant, linear, and any; the last deviates by no more than the error allows.
    noise = torch.randn(steps, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sequence = torch.cat([torch.full((steps, 1), 7.0, dtype=torch.float64), noise], 1)
    made = sum(k * direct(one, sequence) for k, one in zip(c, stored, strict=True)) - direct(wanted, sequence)
    assert abs(made[0]) < 1e-10 and made[1:].square().mean().sqrt() <= 1.1 * error * norm + 1e-10
    if std in (0.05, 0.1):
        assert error < 1e-6 and torch.allclose(c, torch.tensor([one == wanted for one in stored]).double(), atol=1e-9)


TOY = (
    "data=toy2d", "network.width=16", "callback.samples.count=10", "callback.evaluation.at_end=false", "rehearsal=false",
    "trainer.accelerator=cpu",
)  # fmt: skip


def command(*words: object, code: int = 0) -> str:
    """What a command prints."""
    done = zygote.run(*words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run of 30 steps with snapshots, stopped after 20 and resumed, and that of an unbroken one."""
    one, two = (tmp_path_factory.mktemp("posthoc") / name for name in ("broken", "whole"))
    every = ("callback.posthoc_ema.every_n_steps=4", f"paths.log_dir={one.parent}")
    command("train.py", *TOY, *every, "trainer.max_steps=20", "decay_steps=30", f"hydra.run.dir={one}")
    (one / "ema" / "step_00000024.pt").write_bytes(b"of another continuation")
    command("train.py", f"ckpt_path={one}", "trainer.max_steps=22")
    assert [path.name for path in sorted((one / "ema").iterdir())][-1] == "step_00000020.pt"
    command("train.py", f"ckpt_path={one}", "trainer.max_steps=30")
    command("train.py", *TOY, *every, "trainer.max_steps=30", f"hydra.run.dir={two}")
    return one, two


def test_snapshots_of_a_resumed_run_are_those_of_an_unbroken_one(run):
    one, two = (sorted((folder / "ema").glob("step_*.pt")) for folder in run)
    assert [path.stem[-2:] for path in one] == ["04", "08", "12", "16", "20", "24", "28"] == [p.stem[-2:] for p in two]
    for a, b in zip(one, two, strict=True):
        for left, right in zip(*(torch.load(path, weights_only=True) for path in (a, b)), strict=True):
            assert left["std"] == right["std"] and left["updates"] == int(a.stem[5:]) == right["updates"]
            assert all(torch.equal(left["weights"][name], right["weights"][name]) for name in left["weights"])


def test_the_command_makes_checkpoints_that_sample(run, tmp_path):
    said = command("-m", "diffusion_lab.ema", run[0], "std=0.1,0.07", f"out={tmp_path}")
    assert "std 0.07: gamma 11.24, from 16 averages, relative error" in said
    stored = torch.load(run[0] / "checkpoints/step_00000030.ckpt", weights_only=True)["posthoc_averages"]
    weights = dict(diffusion_lab.load(tmp_path / "std_0.1_step_00000030.ckpt").network.named_parameters())
    for name, value in stored[1]["weights"].items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
    other = dict(diffusion_lab.load(tmp_path / "std_0.07_step_00000030.ckpt").network.named_parameters())
    between = [
        (stored[0]["weights"][k] - other[k]).norm() < (stored[0]["weights"][k] - v).norm() for k, v in weights.items()
    ]
    assert all(between)
    command(
        "sample.py", f"ckpt_path={tmp_path}/std_0.07_step_00000030.ckpt", "num_samples=3", f"out={tmp_path}/samples"
    )
    refused = command("train.py", f"ckpt_path={tmp_path}/std_0.07_step_00000030.ckpt", *TOY, code=2)
    assert "holds no training state to resume" in refused


def test_profiles_are_scored_and_drawn(run):
    words = ("evaluate=true", "num_samples=20", "likelihood=none", "sampler=ddim", "sampler.steps=3", "rehearsal=false")
    said = command("-m", "diffusion_lab.ema", run[0], "std=0.05,0.2", *words, f"paths.log_dir={run[0].parent}")
    (place,) = (run[0] / "ema").glob("evaluation_*")
    assert "lowest sliced_wasserstein_20" in said and (place / "distance_by_std.png").is_file()
    found = [json.loads(path.read_text())["checkpoint"] for path in place.glob("*/results.json")]
    assert sorted(found) == [str(run[0] / "ema" / f"std_{std}_step_00000030.ckpt") for std in ("0.05", "0.2")]


@pytest.mark.parametrize("words, message", [
    (["std=0.3"], "std=0.3 must be in (0, 0.2887], which is that of the uniform average"),
    (["std=wide"], "std=wide must be a number, or several as std=0.02,0.05,0.1"),
    ([], "std= must be a number"),
    (["std=0.1", "num_samples=3"], "num_samples=3 has an effect only with evaluate=true"),
    (["std=0.1", "evaluate=true", "num_sampels=3"], "did you mean num_samples?"),
])  # fmt: skip
def test_the_command_refuses_in_one_line(run, words, message):
    said = command("-m", "diffusion_lab.ema", run[0], *words, code=2)
    assert message in said and len(said.strip().splitlines()) == 1


def test_runs_without_averages_are_refused(run, tmp_path):
    fixed = ("trainer.max_steps=1", "decay_steps=9", f"hydra.run.dir={tmp_path}/run", f"paths.log_dir={tmp_path}")
    command("train.py", *TOY, *fixed)
    said = command("-m", "diffusion_lab.ema", tmp_path / "run", "std=0.1", code=2)
    assert "train with callback.posthoc_ema.every_n_steps=N" in said
    resumed = ("train.py", f"ckpt_path={tmp_path}/run", "trainer.max_steps=2")
    said = command(*resumed, "callback.posthoc_ema.every_n_steps=1", code=2)
    assert "no power-function average of std 0.05, 0.1" in said and "every_n_steps=null" in said
    said = command("train.py", f"ckpt_path={run[1]}", "callback.posthoc_ema.stds=[0.05,0.2]", code=2)
    assert "no power-function average of std 0.2" in said and "callback.posthoc_ema.stds=[0.05,0.1]" in said
