"""A user's own components work in training, sampling and evaluation, or are refused before the first step."""

from __future__ import annotations

import pickle
import random
import re
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from experiment import composed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zygote import ROOT, run

from diffusion_lab.callback import EMA, NonFiniteGuard
from diffusion_lab.data import DataModule
from diffusion_lab.data.base import Splits
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.likelihood import FlowLikelihood, VariationalBound
from diffusion_lab.loss import DenoisingLoss, ImplicitScoreMatching, Importance, SlicedScoreMatching
from diffusion_lab.model import DDPM, Model, rehearse
from diffusion_lab.network import UNet
from diffusion_lab.noise import draw, draw_each
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear
from diffusion_lab.sampler import DDIM, Ancestral, ProbabilityFlow, Sampler

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """A valid network whose output is changed by a function."""

    def __init__(self, change=lambda out, x, t: out, out: int = 3) -> None:
        super().__init__()
        self.conv, self.change = nn.Conv2d(3, out, 3, padding=1), change

    def forward(self, x, t):
        h = self.conv(x) * (1 + 1e-3 * t.to(x))[:, None, None, None]
        return self.change(h, x, t)


class Halving(Net):
    def forward(self, x, t):
        low = nn.functional.avg_pool2d(super().forward(x, t), 4)
        return torch.nn.functional.interpolate(low, scale_factor=4)


class Timed(Net):
    """Uses t in the precision of its weights, as most networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 3)

    def forward(self, x, t):
        return super().forward(x, t) + self.embed(t[:, None] / 1000)[:, :, None, None]


class CutOff(Net):
    """Trains, but its output has no gradient in its input."""

    def forward(self, x, t):
        return super().forward(x.detach(), t)


class BatchNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x, t):
        return self.norm(super().forward(x, t))


class Locked(BatchNorm):
    """Has an attribute that copy.deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class UserLoss:
    """|eps_hat - eps|^2, by the functions of the contract, then changed."""

    def __init__(self, change=lambda losses: losses) -> None:
        self.change = change

    def __call__(self, denoiser, x0, generator=None):
        t = draw_each(denoiser.process.sample_times, len(x0), x0.device, generator)
        eps = draw(x0.shape, generator, x0.dtype, x0.device)
        squared = (denoiser(denoiser.process.perturb(x0, t, eps), t).eps - eps).square()
        return self.change(squared.flatten(1).mean(1))


class PlainNoise:
    """A typical first attempt: torch.randn accepts one generator only."""

    def __call__(self, denoiser, x0, generator=None):
        t = denoiser.process.sample_times(len(x0), x0.device, generator)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        return (denoiser(denoiser.process.perturb(x0, t, eps), t).eps - eps).square().flatten(1).mean(1)


class OneShot:
    """A user's sampler: the estimate of x_0 at pure noise, then changed."""

    def __init__(self, change=lambda x: x) -> None:
        self.change = change

    def __call__(self, denoiser, shape, generator=None, device="cpu"):
        x = draw(shape, generator, torch.float32, device)
        return self.change(denoiser(x, torch.ones(shape[0], device=device)).x0)


class UserVP(VP):
    """VP with modified alpha and sigma."""

    def __init__(self, change=lambda alpha, sigma, t: (alpha, sigma)) -> None:
        super().__init__(Linear())
        self.change = change

    def alpha(self, t):
        return self.change(super().alpha(t), super().sigma(t), t)[0]

    def sigma(self, t):
        return self.change(super().alpha(t), super().sigma(t), t)[1]


class UserLikelihood:
    name, TERMS = "own", ("all",)

    def __call__(self, denoiser, x0, grey_levels, generator=None):
        return Given(x0.sum())


class Given:
    def __init__(self, value) -> None:
        self.log_likelihood, self.terms = value, {"all": value}


def model_of(
    network=None, loss=None, sampler=None, process=None, likelihood=None, shape=SHAPE, grey_levels=256, cls=Model
):
    torch.manual_seed(0)
    row = Parameterization("eps", "time_999", -1.0, 1.0)
    return cls(
        Denoiser(network or Net(), process or DiscreteProcess(Linear(), 20), row), loss or UserLoss(),
        sampler or Sampler(DDIM(), steps=3), likelihood, lambda p: torch.optim.Adam(p, lr=1e-3), shape, grey_levels,
    )  # fmt: skip


def items(shape=SHAPE, count=2):
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0)) / 255


def trainer_of(folder, steps=3, **options):
    return pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


def weight_normed(network):
    nn.utils.weight_norm(network.conv)  # the weight is then no leaf, which copy.deepcopy refuses
    network(torch.zeros(1, *SHAPE), torch.zeros(1))
    return network


def frozen(network):
    return network.requires_grad_(False)


REFUSED = {
    "fewer channels": ({"network": Net(out=1)}, r"network Net returns \(B, 1, 8, 8\), expected \(B, 3, 8, 8\)"),
    "squeezed": ({"network": Net(lambda h, x, t: h[:, :1].squeeze())}, r"returns \(B, 8, 8\), expected \(B, 3, 8, 8\)"),
    "batch of one squeezed": ({"network": Net(lambda h, x, t: h.squeeze(0))}, r"returns \(3, 8, 8\), expected \(B, 3, 8, 8\)"),
    "mean of the batch": ({"network": Net(lambda h, x, t: h.mean(0, True))}, r"returns \(1, 3, 8, 8\), expected \(B, 3, 8, 8\)"),
    "tuple": ({"network": Net(lambda h, x, t: (h, None))}, r"network Net returns a tuple, expected a tensor \(B, 3, 8, 8\)"),
    "dict": ({"network": Net(lambda h, x, t: {"sample": h})}, "network Net returns a dict, expected a tensor"),
    "None": ({"network": Net(lambda h, x, t: None)}, "network Net returns a NoneType, expected a tensor"),
    "whole numbers": ({"network": Net(lambda h, x, t: h.long())}, "network Net returns torch.int64, expected real numbers"),
    "complex": ({"network": Net(lambda h, x, t: h.to(torch.complex64))}, "network Net returns torch.complex64"),
    "NaN": ({"network": Net(lambda h, x, t: h / 0 * 0)}, "network Net returns NaN or infinity for finite x .* and t"),
    "tuple while training": (
        {"network": Net(lambda h, x, t: (h, h) if torch.is_grad_enabled() else h)}, "network Net returns a tuple"),
    "constant": ({"network": Net(lambda h, x, t: torch.ones_like(x))}, "output of the network Net does not depend on"),
    "wants level numbers": (
        {"network": Net(lambda h, x, t: h + nn.functional.embedding(t, torch.ones(9, 1)))}, r"Net cannot take x .* t \(B,\) float32"),
    "no module": ({"network": lambda x, t: x}, "the network <lambda> must be a torch.nn.Module"),
    "wrong signature": ({"network": nn.Conv2d(3, 3, 3)}, "the network Conv2d cannot take .*TypeError"),
    "nothing trained": ({"network": frozen(Net())}, "the loss UserLoss has no gradient.*all of Net is frozen"),
    "detached": ({"network": Net(lambda h, x, t: h.detach())}, "the loss UserLoss has no gradient"),
    "scalar loss": ({"loss": UserLoss(torch.mean)}, r"loss UserLoss returns .* of shape \(\).* shape \(B,\)"),
    "loss of pixels": ({"loss": UserLoss(lambda x: x[:, None])}, r"loss UserLoss returns .* of shape \(2, 1\)"),
    "loss in a dict": ({"loss": UserLoss(lambda x: {"loss": x})}, "loss UserLoss returns dict, expected the loss of each item"),
    "loss of NaN": ({"loss": UserLoss(lambda x: x.log() * torch.nan)}, "loss UserLoss is not finite"),
    "loss of one generator": ({"loss": PlainNoise()}, "loss PlainNoise fails where generator is a list.*noise.draw.*draw_each"),
    "loss without generator": ({"loss": lambda denoiser, x0: x0.flatten(1).mean(1)}, "has no gradient"),
    "loss that requires a generator": (
        {"loss": lambda denoiser, x0, generator: x0.flatten(1).mean(1)}, r"must be called as loss\(denoiser, x0, generator=None\)",
    ),
    "loss that fails": ({"loss": UserLoss(lambda x: x[5:][0])}, "the loss UserLoss: IndexError"),
    "whole losses": ({"loss": UserLoss(lambda x: x.round().long())}, r"UserLoss returns torch.int64 of shape \(2,\)"),
    "steep loss": ({"loss": UserLoss(lambda x: (x - x.detach()).sqrt())}, "gradient of the loss UserLoss is not finite"),
    "sampler of another shape": ({"sampler": OneShot(lambda x: x[:, :1])}, r"sampler OneShot returns \(2, 1, 8, 8\)"),
    "sampler of NaN": ({"sampler": OneShot(lambda x: x * torch.nan)}, "sampler OneShot returns NaN"),
    "sampler that fails": ({"sampler": OneShot(lambda x: x.nothing)}, "sampler OneShot: AttributeError"),
    "sampler of a list": ({"sampler": OneShot(list)}, "sampler OneShot returns list"),
    "no noise at the end": (
        {"process": UserVP(lambda a, s, t: (a, s * (t > 0.01)))}, r"process UserVP: sigma\(.*\) = 0, expected a positive number"),
    "noise first": ({"process": UserVP(lambda a, s, t: (s, a))}, "process UserVP: alpha/sigma increases with t"),
    "scales of another shape": ({"process": UserVP(lambda a, s, t: (a.mean(), s))}, r"UserVP: alpha\(t\) has shape \(\)"),
    "likelihood of the batch": ({"likelihood": {"own": UserLikelihood()}}, r"likelihood=own .* returns log_likelihood of shape \(\)"),
}  # fmt: skip


@pytest.mark.parametrize("parts, message", REFUSED.values(), ids=list(REFUSED))
def test_an_invalid_component_is_refused_in_one_line(parts, message):
    model = model_of(**parts)
    with pytest.raises(ValueError, match=message) as refusal:
        rehearse(model, items(), likelihoods=list(model.likelihood))
    assert "\n" not in str(refusal.value)


WORKS = {
    "plain": {},
    "batch norm": {"network": BatchNorm()},
    "cannot be copied": {"network": Locked()},
    "weight norm": {"network": weight_normed(Net())},
    "dropout": {"network": Net(lambda h, x, t: nn.functional.dropout(h, 0.5, torch.is_grad_enabled()))},
    "zero at first": {"network": Net(lambda h, x, t: h * 0)},
    "double": {"network": Net(lambda h, x, t: h.double())},
    "half": {"network": Net(lambda h, x, t: h.bfloat16())},
    "implicit": {"loss": ImplicitScoreMatching(), "shape": (3, 2, 2)},
    "sliced": {"loss": SlicedScoreMatching()},
    "likelihoods": {"loss": DenoisingLoss(), "likelihood": {"flow": FlowLikelihood(1e-2, 1e-2), "bound": VariationalBound()}},
    "own sampler": {"sampler": OneShot()},
    "time in a layer": {"network": Timed(), "loss": DenoisingLoss(), "likelihood": {"bound": VariationalBound(terms=3)}},
    "adaptive": {"sampler": ProbabilityFlow(1e-2, 1e-2)},
    "own process": {"process": UserVP()},
    "exploding": {"process": VE(Geometric(0.01, 50.0)), "sampler": Sampler(Ancestral(), steps=5)},
    "latents": {"grey_levels": None},
}  # fmt: skip


@pytest.mark.parametrize("parts", WORKS.values(), ids=list(WORKS))
def test_valid_components_train_validate_and_sample(parts, tmp_path):
    model = model_of(**parts)
    x = items(model.shape, 8) if model.grey_levels else 3 * torch.randn(8, *model.shape)
    loader = DataLoader(TensorDataset(x), batch_size=4, shuffle=True)
    trainer_of(tmp_path, inference_mode=False).fit(model, loader, DataLoader(TensorDataset(x), batch_size=8))
    assert model.sample(3).shape == (3, *model.shape)
    if hasattr(model.sampler, "trajectory"):
        assert list(model.trajectory(2))[-1].x.shape == (2, *model.shape)
    for likelihood in model.likelihood.values():
        assert likelihood(model.denoiser, model.encode(x), model.grey_levels).log_likelihood.shape == (8,)


NOTES = {
    "no way back to x": (CutOff, "has no gradient in its input: likelihood=flow would be wrong"),
    "ignores t": (lambda: Net(lambda h, x, t: h / (1 + 1e-3 * t.to(x))[:, None, None, None].detach() * 0 + x.sin()), "does not depend on t"),
    "mixes the batch": (lambda: Net(lambda h, x, t: h - x.mean(0, True)), "mixes the items of a batch"),
    "half": (lambda: Net(lambda h, x, t: h.half()), "returns float16 for inputs of float32, which loses precision"),
    "random": (lambda: Net(lambda h, x, t: h * torch.rand(())), "random in eval mode"),
}  # fmt: skip


@pytest.mark.parametrize("network, note", NOTES.values(), ids=list(NOTES))
def test_unusual_networks_cause_a_warning(network, note, tmp_path):
    assert [note in message for message in rehearse(model_of(network()), items())] == [True]
    with pytest.warns(UserWarning, match=note):
        trainer_of(tmp_path).fit(model_of(network()), DataLoader(TensorDataset(items()), batch_size=2))


class TimeFromZero(Net):
    """Its time enters through a layer whose weights are zero at first, as in residual blocks of ADM."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, 3)
        nn.init.zeros_(self.time.weight), nn.init.zeros_(self.time.bias)

    def forward(self, x, t):
        return self.conv(x) + self.time(t[:, None].to(x))[:, :, None, None]


def test_time_behind_weights_that_are_zero_before_the_training_causes_no_warning():
    assert rehearse(model_of(TimeFromZero()), items()) == []


DATA = {
    "bytes": (TensorDataset((items() * 255).byte()), {}, "values from .* to .*, but images of 256 grey levels must be in"),
    "centred": (TensorDataset(items() * 2 - 1), {}, r"values from -\d.* must be in \[0, 1\].*grey_levels=None"),
    "another shape": (TensorDataset(items((1, 8, 8))), {}, r"the data have shape \(1, 8, 8\), but the model has shape \(3,"),
    "NaN": (TensorDataset(items() * torch.nan), {}, "the data contain NaN or infinity"),
    "no tuple": (items(), {}, r"the data return batches of type Tensor, expected tuples \(x, label\)"),
    "dict": ([{"image": image} for image in items()], {}, "the data return batches of type dict"),
    "fails": (range(3), {"collate_fn": len}, "the data return batches of type int"),
}  # fmt: skip


@pytest.mark.parametrize("data, options, message", DATA.values(), ids=list(DATA))
def test_invalid_data_are_refused_before_the_first_step(data, options, message, tmp_path):
    model = model_of()
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path).fit(model, DataLoader(data, batch_size=2, **options))
    assert model.trainer.global_step == 0


def test_a_stream_of_data_is_rehearsed_without_its_items(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(items(count=4),)] * 3)

    trainer_of(tmp_path).fit(model_of(), DataLoader(Stream(), batch_size=None))
    with pytest.raises(ValueError, match="network Net returns"):
        trainer_of(tmp_path).fit(model_of(Net(out=1)), DataLoader(Stream(), batch_size=None))


def test_a_model_without_optimizer_says_so(tmp_path):
    model = model_of()
    model.optimizer = None
    with pytest.raises(ValueError, match="no optimizer and cannot be trained"):
        trainer_of(tmp_path).fit(model, DataLoader(TensorDataset(items())))


def test_the_sizes_that_a_network_accepts_are_reported():
    for size, near in (((10, 8), "8x8 and 12x8"), ((8, 2), "8x4")):
        with pytest.raises(ValueError, match=f"; it accepts images of {near}$"):
            rehearse(model_of(Halving(), shape=(3, *size)), items((3, *size)))
    unet = UNet(3, 8, channels=8, multipliers=(1, 1, 1), blocks=1, attention=(), groups=2)
    with pytest.raises(ValueError, match="UNet cannot take .*divisible by 4; it accepts images of 8x12"):
        rehearse(model_of(unet, shape=(3, 8, 11)), items((3, 8, 11)))


class Counting(DataModule):
    """A data module of ours."""

    def load(self):
        return Splits(TensorDataset((items(count=16) * 255).byte()), TensorDataset((items(count=4) * 255).byte()))


class Begun(pl.Callback):
    def on_train_batch_start(self, *_):
        raise InterruptedError("training has begun")


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({"max_epochs": 1}, False),
        ({}, False),  # Lightning's default of 1,000 epochs
        ({"max_epochs": 1, "max_steps": 2}, True),
        ({"max_epochs": 1, "limit_train_batches": 2}, True),
        ({"max_time": {"seconds": 9}}, True),
        ({"max_epochs": -1}, True),  # as said: without an end
    ],
)
def test_a_trainer_that_only_epochs_would_end_is_refused(tmp_path, options, ends):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Begun()],
        enable_model_summary=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    model, data = model_of(loss=DenoisingLoss()), Counting(shape=SHAPE, batch_size=4)
    model.rehearsal = False
    message = "training has begun" if ends else r"Trainer\(max_epochs=\d+\) would never end: .* give max_steps=..."
    with pytest.raises(InterruptedError if ends else ValueError, match=message):
        trainer.fit(model, datamodule=data)


@pytest.mark.parametrize("network", [BatchNorm, Locked], ids=["copied", "in place"])
def test_the_rehearsal_does_not_change_the_state_of_training(network):
    def drawing(losses):
        random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
        return losses

    def backend(*_):
        raise AssertionError("two items are not worth a compilation")

    model = model_of(network(), UserLoss(drawing), likelihood={"flow": FlowLikelihood(1e-2, 1e-2)})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.eval()
    model.denoiser.network.conv.train()
    model.network.compile(backend=backend)

    def state():
        tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters()), torch.get_rng_state()]
        return [t.clone() for t in tensors], [m.training for m in model.modules()], random.getstate()

    before, numbers, compiled = state(), np.random.get_state()[1].copy(), model.network._compiled_call_impl  # noqa: NPY002
    rehearse(model, items(), likelihoods=["flow"])
    after = state()
    assert all(map(torch.equal, before[0], after[0])) and before[1:] == after[1:]
    assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002
    assert model.network._compiled_call_impl is compiled and model.denoiser.nfe == 0
    assert "forward" not in vars(model.network)


@pytest.mark.parametrize("network", [BatchNorm, Locked])
def test_training_is_bit_equal_with_and_without_the_rehearsal(network, tmp_path):
    weights = []
    for rehearsal in (True, False):
        torch.manual_seed(0)
        model = model_of(network(), DenoisingLoss())
        model.rehearsal = rehearsal
        data = Counting(shape=SHAPE, batch_size=4, flip=True)
        trainer = trainer_of(tmp_path, callbacks=[NonFiniteGuard(), EMA(0.9)], use_distributed_sampler=False)
        trainer.fit(model, datamodule=data)
        weights.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *weights))


def test_a_long_sampler_evaluates_the_converted_network_a_few_times_only():
    seen = []
    network = Net(lambda h, x, t: seen.append(h.dtype) or h)
    rehearse(
        model_of(network, sampler=Sampler(DDIM(), steps=100), process=VP(Linear())),
        items(),
        convert=lambda model: model.double(),
    )
    assert set(seen) == {torch.float64} and len(seen) < 50


def test_a_gradient_that_float16_cannot_hold_is_left_to_the_scaler():
    model = model_of(loss=UserLoss(lambda x: (x - x.detach()).sqrt()))
    assert rehearse(model, items(), context=lambda: torch.autocast("cpu", torch.float16)) == []


def test_the_loss_of_the_guide_is_accepted():
    guide = (Path(__file__).parents[1] / "docs/guide/own_parts.md").read_text()
    names: dict = {}
    exec(textwrap.dedent(re.search(r"```python\n((?:(?!```).)*class AbsoluteError.*?)```", guide, re.DOTALL)[1]), names)
    rehearse(model_of(loss=names["AbsoluteError"]()), torch.rand(2, *SHAPE), training=True)


def test_what_is_only_sampled_from_needs_no_loss_and_no_optimizer():
    model = model_of(loss=PlainNoise())
    model.optimizer = None
    assert rehearse(model, items(), training=False) == []


def test_the_rehearsal_can_be_skipped(tmp_path):
    model = model_of(loss=PlainNoise())
    model.rehearsal = False
    trainer_of(tmp_path).fit(model, DataLoader(TensorDataset(items())))
    assert model.trainer.global_step == 3


@pytest.mark.parametrize("sampler", [DDIM(), Ancestral()])
def test_a_model_with_its_components_can_be_pickled(sampler):
    likelihood = {"bound": VariationalBound(), "flow": FlowLikelihood()}
    for weighting in ("simple", "x0", "v", "min_snr", "likelihood"):
        loss = DenoisingLoss(weighting, time_law=Importance(), reduction="half_sum")
        network = UNet(3, 8, channels=8, multipliers=(1, 1), blocks=1, attention=(4,), groups=2)
        model = DDPM(network, Linear(), loss, Sampler(sampler, steps=2), likelihood, shape=SHAPE, levels=10)
        drawn = model.sample(2)
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again.sample(2), drawn)
        t, x0 = torch.tensor([0.2, 0.7]), items()
        assert torch.equal(*(m.loss.weight(m.denoiser, t) for m in (model, again))) and x0.shape[1:] == SHAPE


PACKAGE = """
import torch
from torch.utils.data import Dataset, TensorDataset
from diffusion_lab.data import DataModule
from diffusion_lab.noise import draw, draw_each
class Net(torch.nn.Module):
    def __init__(self, out: int = 1):
        super().__init__()
        self.conv, self.embed = torch.nn.Conv2d(1, out, 3, padding=1), torch.nn.Linear(1, out)
    def forward(self, x, t):
        return self.conv(x) + self.embed(t[:, None] / 1000)[:, :, None, None]
class Loss:
    noise = staticmethod(lambda x0, generator: torch.randn(x0.shape, generator=generator))
    def __call__(self, denoiser, x0, generator=None):
        t = draw_each(denoiser.process.sample_times, len(x0), x0.device, generator)
        eps = self.noise(x0, generator)
        return (denoiser(denoiser.process.perturb(x0, t, eps), t).eps - eps).square().flatten(1).mean(1)
class GoodLoss(Loss):
    noise = staticmethod(lambda x0, generator: draw(x0.shape, generator, x0.dtype, x0.device))
class OneShot:
    def __call__(self, denoiser, shape, generator=None, device="cpu"):
        x = draw(shape, generator, torch.float32, device)
        return denoiser(x, torch.ones(shape[0], device=device)).x0.clamp(-1, 1)
class Thin(OneShot):
    def __call__(self, *given):
        return super().__call__(*given)[:, :, :4]
class Pictures(DataModule):
    def load(self):
        return TensorDataset(torch.arange(40 * 64, dtype=torch.uint8).reshape(40, 1, 8, 8))
class Plain(Dataset):
    pass
class Late(Dataset):
    reads = 0
    def __len__(self):
        return 600
    def __getitem__(self, index):
        self.reads += 1
        if self.reads > 330:  # 316 are looked at before
            raise OSError("no such host\\nnas7")
        return torch.full((1, 8, 8), index % 256, dtype=torch.uint8)
class Remote(DataModule):
    def load(self):
        return Late()
"""
OWN = {
    "network": ("mine.Net\nout: 2", "the network Net returns (B, 2, 8, 8), expected (B, 1, 8, 8)"),
    "loss": ("mine.Loss", "the loss Loss fails where generator is a list with one per"),
    "sampler": ("mine.Thin", "the sampler Thin returns (2, 1, 4, 8), expected real numbers of"),
    "data": ("mine.Plain\nshape: [1, 8, 8]", "data._target_=mine.Plain is not a diffusion_lab.data.DataModule: derive"),
}  # fmt: skip


def command(folder, script, *words, **parts):
    """Run a script with user-defined options, each a class `mine.<component>`, in a folder with these."""
    (folder / "mine.py").write_text(PACKAGE)
    for group, target in parts.items():
        (folder / "conf" / group).mkdir(parents=True, exist_ok=True)
        (folder / "conf" / group / "own.yaml").write_text(f"_target_: {target}\n")
    given = ["--config-dir", folder / "conf", *(f"{group}=own" for group in parts)] if parts else []
    done = run(ROOT / script, *given, *words, cwd=folder, DIFFUSION_LAB_PACKAGES="mine")
    told = [line for line in done.stderr.strip().splitlines() if not line.startswith("training:")]
    assert len(told) == 1 or done.returncode == 0, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("group", OWN)
def test_the_command_line_refuses_an_invalid_component_before_it_writes_files(group, tmp_path):
    target, message = OWN[group]
    words = ["trainer.max_steps=3", "callback.evaluation.at_end=false", "logger=csv"]
    words += ["network=unet_small"] * (group == "data")
    code, said = command(tmp_path, "train.py", *words, **{group: target})
    assert code == 2 and message in said
    assert not [path for path in (tmp_path / "logs").rglob("*") if path.is_file() and ".hydra" not in path.parts]


def test_user_components_train_resume_and_sample_from_the_command_line(tmp_path):
    parts = {
        "network": "mine.Net",
        "loss": "mine.GoodLoss",
        "sampler": "mine.OneShot",
        "data": "mine.Pictures\nshape: [1, 8, 8]",
    }
    small = [
        "debug=fast",
        "logger=csv",
        "data.batch_size=8",
        "metric.features=null",
        "callback.samples.every_n_steps=null",
    ]
    for script, words in (
        ("train.py", small),
        ("train.py", ["ckpt_path=last", "trainer.max_steps=5"]),
        ("sample.py", ["ckpt_path=last", "num_samples=3", "evaluate=true", "likelihood_samples=2"]),
    ):
        code, said = command(tmp_path, script, *words, **(parts if words is small else {}))
        assert code == 0, said
        assert ("resumes from step 4" in said) == ("trainer.max_steps=5" in words)
    assert len(list(tmp_path.glob("logs/train/*/*/samples.png"))) == 1 and not list(tmp_path.rglob("trajectory.png"))
    assert len(list(tmp_path.glob("logs/sample/**/samples.npz"))) == 1
    code, said = command(tmp_path, "sample.py", "ckpt_path=last", "num_samples=3", "trajectory=true")
    assert code == 2 and "trajectory=true: OneShot has no trajectory(...)" in said


def test_an_unreadable_item_ends_the_training_with_one_line(tmp_path):
    parts = {"network": "mine.Net", "data": "mine.Remote\nshape: [1, 8, 8]"}
    words = ["debug=fast", "logger=csv", "data.batch_size=8", "metric.features=null"]
    code, said = command(tmp_path, "train.py", *words, **parts)
    found = re.search(r"error: item (\d+) of the data set Late cannot be read: OSError: no such host nas7; ", said)
    assert code == 1 and found and int(found[1]) < 600, said


def test_a_loss_without_validation_support_trains_without_the_rehearsal(tmp_path):
    words = ["debug=fast", "logger=csv", "callback.evaluation.at_end=false", "trainer.val_check_interval=null"]
    code, said = command(tmp_path, "train.py", *words, "callback.samples.count=1", "rehearsal=false", loss="mine.Loss")
    assert code == 0, said


def test_a_run_whose_metric_cannot_be_computed_is_refused_unless_requested(tmp_path):
    words = ["data=patches", "debug=fast", "network=unet_small", "data.train_size=64", "data.held_out_size=32"]
    words += ["network.attention=[]", "logger=csv", "trainer.max_steps=1", "callback.samples.count=1"]
    done = run(ROOT / "train.py", *words, "metric.features.weights=nowhere.pth", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "nowhere.pth are missing" in done.stderr and "or metric.features=null to skip FID" in done.stderr
    done = run(ROOT / "train.py", *words, "metric.features=null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("allowed", ["true", "false"])
def test_permission_to_download_data_covers_the_weights_of_their_metric(allowed):
    settings = composed("model=ddpm", "data=cifar10", f"data.download={allowed}", "trainer.devices=8")
    assert settings["metric"]["features"]["download"] is (allowed == "true")
    assert settings["callback"]["evaluation"]["evaluator"]["features"]["download"] is (allowed == "true")
    assert composed("ckpt_path=.", "metric=inception", task="sample")["metric"]["features"]["download"] is False
