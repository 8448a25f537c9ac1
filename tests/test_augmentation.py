"""Non-leaking augmentation: its transformations in closed form, its law, its labels, and their way to the network."""

from __future__ import annotations

import functools
import math

import pytest
import pytorch_lightning as pl
import torch
import zygote

from diffusion_lab.data import InMemory, Patches, Splits, Toy2D, augmentation
from diffusion_lab.data.batches import TrainBatches
from diffusion_lab.errors import ConfigError
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import DDPM, Labels
from diffusion_lab.network import ADMUNet, NCSNpp, UNet
from diffusion_lab.network.embedding import TimeEmbedding
from diffusion_lab.process import Linear
from diffusion_lab.run.data import add_augmentation
from diffusion_lab.sampler import DDIM, Sampler

HEIGHT, WIDTH = 48, 64
UNET = {"_target_": "diffusion_lab.network.UNet", "in_channels": 3}
NAMES = {"scaling": 2, "angle": 3, "axis": 4, "anisotropy": 5, "x": 6, "y": 7}


def chosen(**values: float) -> torch.Tensor:
    a = torch.zeros(1, 8, dtype=torch.float64)
    for name, value in values.items():
        a[0, NAMES[name]] = value
    return a


def picture(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A smooth function without symmetry, of pixels from the centre."""
    return torch.sin(0.11 * x + 0.3) + 0.6 * torch.cos(0.16 * y - 0.05 * x)


CASES = {  # parameters, the point of the image that comes to (x, y): Table 6, written out
    "scaling": (chosen(scaling=1.5), lambda x, y: (x / 2**0.3, y / 2**0.3)),
    "rotation": (
        chosen(angle=0.7),
        lambda x, y: (math.cos(0.7) * x - math.sin(0.7) * y, math.sin(0.7) * x + math.cos(0.7) * y),
    ),
    "stretched along x": (chosen(anisotropy=1.0), lambda x, y: (x / 2**0.2, y * 2**0.2)),
    "stretched along y": (chosen(anisotropy=1.0, axis=math.pi / 2), lambda x, y: (x * 2**0.2, y / 2**0.2)),
    "translation": (chosen(x=0.5, y=-0.7), lambda x, y: (x - 0.5 * WIDTH / 8, y + 0.7 * HEIGHT / 8)),
    "rotated, then moved": (chosen(angle=math.pi / 2, x=1.0), lambda x, y: (-y, x - WIDTH / 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_transformation_moves_every_point_as_published(case):
    a, origin = CASES[case]
    y, x = torch.meshgrid(torch.arange(HEIGHT) - 23.5, torch.arange(WIDTH) - 31.5, indexing="ij")
    moved = augmentation.augment(picture(x, y)[None, None], a)[0, 0]
    u, v = origin(x, y)
    inside = (u.abs() < WIDTH / 2 - 3) & (v.abs() < HEIGHT / 2 - 3)  # beyond it, mirror images
    inside &= (x.abs() < WIDTH / 2 - 3) & (y.abs() < HEIGHT / 2 - 3)
    assert inside.sum() > 800
    assert (moved - picture(u, v))[inside].abs().max() < 0.01


def test_flips_are_exact_and_images_without_other_transformations_stay_as_they_are():
    x, a = torch.rand(4, 3, 8, 6), torch.zeros(4, 8, dtype=torch.float64)
    a[:, 0], a[:, 1], a[3, 6] = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 0]), 0.3
    out = augmentation.augment(x, a)
    assert out[0].equal(x[0]) and out[1].equal(x[1].flip(-1)) and out[2].equal(x[2].flip(-1, -2))
    assert not out[3].equal(x[3]) and augmentation.augment(x[3:], a[3:]).equal(out[3:])


def test_pixels_from_outside_are_mirror_images():
    half = torch.arange(16.0).expand(1, 1, 16, 16) / 16
    moved = augmentation.augment(half, chosen(x=2.0))[0, 0, 8]  # 4 pixels to the right
    assert (moved[:4] - half[0, 0, 8, :4].flip(0)).abs().max() < 0.03


def test_the_law_is_that_of_the_table():
    a = augmentation.parameters(40_000, 0.12, torch.Generator().manual_seed(0))
    share = (a != 0).double().mean(0)
    assert share[0] == pytest.approx(0.5, abs=0.01) and share[1] == pytest.approx(0.06, abs=0.005)
    assert share[2:].tolist() == pytest.approx([0.12, 0.12, 0.06, 0.12, 0.12, 0.12], abs=0.006)
    together = ((a[:, 4] == 0) | (a[:, 5] != 0)) & ((a[:, 6] != 0) == (a[:, 7] != 0))
    assert together.all() and not ((a[:, 2] != 0) == (a[:, 3] != 0)).all()
    applied = [a[:, i][a[:, i] != 0] for i in range(8)]
    stds = [1, math.pi / 3**0.5, math.pi / 3**0.5, 1, 1, 1]
    assert [one.std().item() for one in applied[2:]] == pytest.approx(stds, rel=0.04)


def test_labels_are_the_published_ones_and_zero_for_the_data_themselves():
    a = torch.tensor([[1, 1, 0.5, 0.3, 0.2, -2, 0.7, -0.1], [0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    wanted = [1, 1, 0.5, math.cos(0.3) - 1, math.sin(0.3), -2 * math.cos(0.2), -2 * math.sin(0.2), 0.7, -0.1]
    found = augmentation.labels(a)
    assert found.dtype == torch.float32 and found[0].tolist() == pytest.approx(wanted)
    assert found[1].tolist() == [0] * augmentation.LABELS


def test_every_rank_gets_its_shard_and_a_position_always_the_same():
    whole = TrainBatches(10, 6, seed=3).augmentations(5, 0.5)
    shards = [TrainBatches(10, 6, 3, rank, 3).augmentations(5, 0.5) for rank in range(3)]
    assert torch.cat(shards).equal(whole)
    assert not TrainBatches(10, 6, 3).augmentations(6, 0.5).equal(whole)


@pytest.mark.parametrize(
    "make",
    [
        lambda **more: UNet(3, 8, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, **more),
        lambda **more: NCSNpp(3, 8, channels=8, multipliers=(1,), blocks=1, attention=(), **more),
        lambda **more: ADMUNet(3, 8, channels=32, multipliers=(1,), blocks=1, attention=(), **more),
    ],
)
def test_a_network_sees_labels_through_a_linear_map_without_bias(make):
    network, (x, t) = make(augmentation=9).double().eval(), (torch.randn(2, 3, 8, 8).double(), torch.rand(2).double())
    for parameter in filter(lambda p: p.requires_grad, network.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    labels = torch.randn(2, 9).double()
    assert network(x, t, augmentation=0 * labels).equal(network(x, t))
    assert not network(x, t, augmentation=labels).allclose(network(x, t))
    with pytest.raises(ValueError, match="without augmentation labels: give it augmentation=9"):
        make().double()(x, t, augmentation=labels)


def test_labels_enter_before_the_first_layer():
    time = TimeEmbedding(8, 16, augmentation=9)
    t, labels, seen = torch.rand(3), torch.randn(3, 9), []
    time.dense1.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    time(t, None, labels), time(t)
    assert (seen[0] - seen[1] - labels @ time.augmentation.dense.weight.T).abs().max() < 1e-6


class Few(Patches):
    def load(self) -> Splits:
        return Splits(InMemory(torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12)))


@pytest.mark.parametrize("setting", [{"augment": 0.5}, {"augment": 0.5, "flip": True}])
def test_it_replaces_the_flips(setting):
    if "flip" in setting:
        with pytest.raises(ValueError, match=r"data.augment=0.5 mirrors images too: set data.flip=false"):
            Few(shape=(3, 8, 8), **setting)
    else:
        Few(shape=(3, 8, 8), flip=False, **setting)
    with pytest.raises(ValueError, match="these are points: set data.augment=0"):
        Toy2D(augment=0.5)


@pytest.mark.parametrize("words, message", [
    ("data=toy2d", "data.augment=0.12 transforms images, but these are points: set data.augment=0"),
    ("data.flip=true", "data.augment=0.12 mirrors images too: set data.flip=false"),
    ("model=ncsn", "needs a network that takes augmentation labels, and RefineNet does not: set data.augment=0, or"),
    ("data.augment=2", "data.augment=2 must be in [0, 1]"),
])  # fmt: skip
def test_what_cannot_be_augmented_is_refused_in_one_line(words, message):
    done = zygote.run("train.py", "data.augment=0.12", *words.split())
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


class Listening(torch.nn.Module):
    """A network that keeps the labels of every call."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = torch.nn.Conv2d(3, 3, 3, padding=1), []

    def forward(self, x, t, label=None, augmentation=None):
        self.calls.append((self.training, augmentation))
        return self.conv(x)


@pytest.mark.parametrize("conditional", [False, True])
def test_labels_reach_the_network_in_training_and_never_in_validation_or_sampling(conditional, tmp_path):
    network, data = Listening(), Few(shape=(3, 8, 8), flip=False, batch_size=4, augment=0.5)
    labels = Labels([1] * 12) if conditional else None
    sampler, adam = Sampler(DDIM(), steps=2), functools.partial(torch.optim.Adam, lr=0.01)
    model = DDPM(network, Linear(), DenoisingLoss(), sampler, None, adam, (3, 8, 8), labels=labels)
    model.rehearsal = False
    options = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "default_root_dir": tmp_path,
    }
    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", use_distributed_sampler=False, num_sanity_val_steps=0, **options
    )
    trainer.fit(model, datamodule=data)
    while_training = [augmentation for training, augmentation in network.calls if training]
    expected = [augmentation.labels(data.batches.augmentations(position, 0.5)) for position in range(3)]
    assert torch.stack(while_training).equal(torch.stack(expected))
    network.calls.clear()
    trainer.validate(model, datamodule=data, verbose=False), model.eval().sample(2)
    assert len(network.calls) == 3 and all(found is None for _, found in network.calls)


def test_the_settings_of_an_augmented_model_hold_the_number_of_labels(tmp_path):
    settings = {"network": {"_target_": "diffusion_lab.network.Energy", "network": dict(UNET)}}
    add_augmentation(settings, 0.12)
    assert settings["network"]["network"]["augmentation"] == 9 and "augmentation" not in settings["network"]
    own = {"network": {"_target_": "torch.nn.Conv2d"}}
    with pytest.raises(ConfigError, match=r"data.augment=0.12: Conv2d.forward takes no augmentation labels; define"):
        add_augmentation(own, 0.12)
