"""Data modules: which item comes when, on which rank, with which values."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import sklearn.datasets
import torch
from experiment import composed
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lab.config import schema
from diffusion_lab.data import MNIST, DataModule, Digits, InMemory, Patches, Splits, Toy2D, TrainBatches

ROOT = Path(__file__).resolve().parents[1]


def trainer(rank: int = 0, world: int = 1, training: bool = True) -> SimpleNamespace:
    """As much of a Trainer as a data module looks at."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(
        global_rank=rank, world_size=world, training=training, overfit_batches=0.0, strategy=strategy, fit_loop=loop
    )


def fitted(module, rank: int = 0, world: int = 1):
    """The module as it stands when a fit begins on one rank."""
    module.trainer = trainer(rank, world)
    module.setup("fit")
    return module


def consume(module, count: int) -> list[torch.Tensor]:
    """The images of the next `count` training batches, as a training step would receive them."""
    batches, seen = iter(module.train_dataloader()), []
    for _ in range(count):
        seen.append(module.on_after_batch_transfer(next(batches), 0)[0])
        module.trainer.fit_loop.epoch_loop.batch_progress.total.processed += 1
    return seen


def test_each_epoch_holds_every_index_once_whatever_the_batch_size() -> None:
    for batch_size in (4, 7, 25):  # 10 items: a batch may cross one epoch or hold several
        batches = TrainBatches(10, batch_size, seed=3)
        stream = torch.cat([batches.batch(p) for p in range(30)])
        epochs = stream[:30].reshape(3, 10)
        assert (epochs.sort(1).values == torch.arange(10)).all()
        assert not torch.equal(epochs[0], epochs[1])
    other = torch.cat([TrainBatches(10, 25, seed=4).batch(p) for p in range(30)])
    assert not torch.equal(stream, other)


def test_two_ranks_together_see_the_batch_of_one() -> None:
    whole, *shares = (TrainBatches(100, 8, 0, rank, world) for rank, world in ((0, 1), (0, 2), (1, 2)))
    for p in range(30):
        assert torch.equal(torch.cat([s.batch(p) for s in shares]), whole.batch(p))
        assert torch.equal(torch.cat([s.flips(p) for s in shares]), whole.flips(p))


def test_seeking_equals_the_stream_from_there() -> None:
    stream = iter(TrainBatches(10, 4, seed=0))
    first = [next(stream) for _ in range(12)]
    sought = iter(TrainBatches(10, 4, seed=0, start=5))
    assert [next(sought) for _ in range(7)] == first[5:]


def test_batch_that_does_not_divide_is_refused_before_loading_a_batch() -> None:
    with pytest.raises(ValueError, match=r"data.batch_size=128 .*3 ranks: set it to 126 or 129"):
        fitted(Digits(batch_size=128), rank=0, world=3)
    module = Digits(batch_size=128)
    module.trainer = trainer(0, 3)
    module.setup("test")  # evaluating deals no training batches


def test_flips_are_fair_mirror_images_only_while_training() -> None:
    module = fitted(Patches(batch_size=256, train_size=300, held_out_size=10))
    batch = module.splits.train.__getitems__(range(256))
    plain = batch[0].float() / 255
    x, label = module.on_after_batch_transfer(batch, 0)
    mirrored = module.batches.flips(0)
    assert torch.equal(x[mirrored], plain[mirrored].flip(-1))
    assert torch.equal(x[~mirrored], plain[~mirrored])
    assert torch.equal(label, batch[1])
    coins = torch.cat([module.batches.flips(p) for p in range(200)]).double()
    assert abs(coins.mean().item() - 0.5) < 4 * 0.5 / len(coins) ** 0.5

    module.trainer.training = False
    assert torch.equal(module.on_after_batch_transfer(batch, 0)[0], plain)
    assert module.position == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_continues_with_the_next_batch_not_the_prefetched_one(workers: int) -> None:
    def new() -> Patches:
        module = Patches(batch_size=16, train_size=50, held_out_size=10, seed=7)
        module.num_workers = workers
        return fitted(module)

    straight = consume(new(), 7)
    broken = new()
    consume(broken, 3)
    broken.on_after_batch_transfer(next(iter(broken.train_dataloader())), 0)  # on its way when the state is taken
    state = broken.state_dict()
    resumed = new()
    resumed.load_state_dict(state)
    for got, wanted in zip(consume(resumed, 4), straight[3:], strict=True):
        assert torch.equal(got, wanted)


class Recorder(pl.LightningModule):
    """Keeps what it is shown and learns one number from it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].clone())
        return (self.weight - batch[0].mean()) ** 2

    def validation_step(self, batch, batch_idx):
        assert batch[0].max() <= 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(steps: int, *, flip: bool = True, checkpoint: Path | None = None, **options) -> tuple[Recorder, pl.Trainer]:
    model = Recorder()
    run = pl.Trainer(
        max_steps=steps,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = Patches(batch_size=32, train_size=50, held_out_size=40, flip=flip)
    run.fit(model, datamodule=data, ckpt_path=checkpoint)
    return model, run


def test_lightning_resumes_the_stream_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    straight, _ = fit(6, val_check_interval=2)
    _, first = fit(3, val_check_interval=2)
    first.save_checkpoint(tmp_path / "third.ckpt")
    second, _ = fit(6, val_check_interval=2, checkpoint=tmp_path / "third.ckpt")
    assert len(straight.seen) == 6
    assert len(second.seen) == 3
    assert torch.equal(torch.stack(second.seen), torch.stack(straight.seen[3:]))
    assert torch.equal(second.weight, straight.weight)


def test_short_epochs_go_on_in_the_stream_but_overfitting_repeats_its_batches() -> None:
    straight, _ = fit(4, flip=False)
    short, _ = fit(4, flip=False, limit_train_batches=2)
    assert torch.equal(torch.stack(short.seen), torch.stack(straight.seen))
    repeated, _ = fit(4, flip=False, overfit_batches=2)
    assert torch.equal(torch.stack(repeated.seen), torch.stack(straight.seen[:2] * 2))


def test_loaders_leave_the_global_random_stream_alone() -> None:
    module = fitted(Digits(batch_size=32))
    before = torch.get_rng_state()
    consume(module, 3)
    list(module.val_dataloader())
    module.images("train", 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_held_out_shards_cover_every_item_once_in_order() -> None:
    def shard(rank: int, world: int) -> torch.Tensor:
        return torch.cat([x for x, _ in fitted(Digits(batch_size=3, eval_batch_size=50), rank, world).val_dataloader()])

    whole = shard(0, 1)
    assert torch.equal(whole, Digits().splits.held_out.x)  # in order, last short batch kept
    for rank in range(3):
        assert torch.equal(shard(rank, 3), whole[rank::3])


def test_images_and_labels_correspond_mix_classes_and_ignore_the_seed() -> None:
    module = Digits(seed=1)
    x, y = module.images("train", 64), module.labels("train", 64)
    assert len(y.unique()) == 10
    assert torch.equal(x, Digits(seed=2).images("train")[:64])
    train = module.splits.train
    stored = {(bytes(x), label) for x, label in zip(train.x.flatten(1).numpy(), train.labels.tolist(), strict=True)}
    shown = zip((x * 16).round().byte().flatten(1).numpy(), y.tolist(), strict=True)
    assert all((bytes(image), label) in stored for image, label in shown)
    assert len(module.images("held_out", 10_000)) == 397
    with pytest.raises(ValueError, match="train or held_out"):
        module.images("test")


def test_images_and_labels_go_on_from_any_number_of_the_same_order() -> None:
    module = Digits()
    assert (module.size("train"), module.size("held_out")) == (1400, 397)
    x, y = module.images("held_out"), module.labels("held_out")
    for first, count in ((0, 100), (100, 100), (300, 97), (396, 5), (7, None)):
        stop = None if count is None else first + count
        assert torch.equal(module.images("held_out", count, first), x[first:stop])
        assert torch.equal(module.labels("held_out", count, first=first), y[first:stop])
    for first, count in ((397, 1), (-1, 1), (0, 0)):
        with pytest.raises(ValueError, match=f"count={count}, first={first}: held_out has items 0 to 396"):
            module.images("held_out", count, first)
    for ask in (module.size, module.fingerprint):
        with pytest.raises(ValueError, match="train or held_out"):
            ask("test")


class Four(DataModule):
    """Four given images of one row."""

    def __init__(self, x: torch.Tensor, labels: torch.Tensor | None = None, **options) -> None:
        self.part = InMemory(x, torch.zeros(4) if labels is None else labels)
        super().__init__(shape=x.shape[1:], **options)

    def load(self) -> Splits:
        return Splits(self.part, self.part, "given")


class Seventeen(Four):
    grey_levels = 17


def test_a_fingerprint_tells_every_pixel_shape_and_type_and_nothing_else() -> None:
    x = torch.arange(4 * 12, dtype=torch.uint8).reshape(4, 3, 2, 2)
    first = Four(x).fingerprint("train")
    assert len(first) == 64 and set(first) <= set("0123456789abcdef")
    strided = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    equal = Four(strided, torch.arange(4), seed=5, flip=False, batch_size=2)
    assert equal.fingerprint("train") == first == Four(x).fingerprint("held_out")
    changed = x.clone()
    changed[3, 2, 1, 1] += 1
    others = [changed, x.flip(0), x.reshape(4, 3, 1, 4), x.float(), x.to(torch.int8), x[:3].repeat(2, 1, 1, 1)[:4]]
    found = {Four(other).fingerprint("train") for other in others}
    assert len(found) == len(others) and first not in found
    assert Seventeen(x % 17, grey_levels=17).fingerprint("train") != Four(x % 17).fingerprint("train")
    assert Digits().fingerprint("train") != Digits().fingerprint("held_out")
    assert Toy2D(name="moons").fingerprint("train") != Toy2D(name="swiss_roll").fingerprint("train")


class Given(DataModule):
    """A user's data module around whatever it is given; nothing is said of grey levels but by the configuration."""

    def __init__(self, loaded: object, **options) -> None:
        self.loaded = loaded
        super().__init__(**({"flip": False} | options))

    def load(self):
        return self.loaded


def bytes_of(count: int = 40, top: int = 255) -> torch.Tensor:
    return torch.randint(0, top + 1, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


class Listed(torch.utils.data.Dataset):
    """Items as people write them, one by one."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


X, Y = bytes_of(), torch.arange(40) % 3
TENSORS = torch.utils.data.TensorDataset(X, Y)
Binary = torch.utils.data.TensorDataset((X > 50).float(), Y)
PLAIN = {
    "tensors": Splits(TENSORS, TENSORS),
    "a pair": (TENSORS, TENSORS),
    "no labels": (torch.utils.data.TensorDataset(X),) * 2,
    "a subset": (torch.utils.data.Subset(TENSORS, range(40)),) * 2,
    "x and label": (Listed([(x, int(y)) for x, y in zip(X, Y)]),) * 2,
    "x alone": (Listed(list(X)),) * 2,
    "arrays": (Listed([x.numpy() for x in X]),) * 2,
    "other bytes": (Listed([x.numpy().astype(">f4") for x in X]),) * 2,
    "PIL": (Listed([(Image.fromarray(x[0].numpy()), int(y)) for x, y in zip(X, Y)]),) * 2,
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_torch_data_sets_are_taken_as_they_are(kind: str) -> None:
    module = fitted(Given(PLAIN[kind], shape=(1, 4, 4), batch_size=8))
    order = torch.cat([module.batches.batch(p) for p in range(5)])
    assert torch.equal(torch.cat(consume(module, 5)), X[order].float() / 255)
    assert torch.cat([x for x, _ in module.val_dataloader()]).shape == X.shape
    labelled = kind not in ("no labels", "x alone", "arrays", "other bytes")
    assert torch.equal(module.splits.train.labels, Y if labelled else torch.zeros_like(Y))
    assert len(module.images("held_out", 7)) == 7 and len(module.fingerprint("train")) == 64


def test_of_one_plain_data_set_a_tenth_is_held_out_and_always_the_same() -> None:
    first, again = (Given(TENSORS, shape=(1, 4, 4)).splits for _ in range(2))
    assert (len(first.train), len(first.held_out)) == (36, 4) and torch.equal(first.train.x, again.train.x)
    alone = Given(Splits(TENSORS), shape=(1, 4, 4))
    assert torch.equal(alone.splits.held_out.x, first.held_out.x) and "a tenth held out" in alone.describe()
    both = torch.cat([first.train.x, first.held_out.x]).flatten(1).numpy()
    assert sorted(map(bytes, both)) == sorted(map(bytes, X.flatten(1).numpy()))


@pytest.mark.parametrize(
    "x, levels, wanted, said",
    [
        (X, 256, X.float() / 255, "256 grey levels"),
        (X.long(), 256, X.float() / 255, "256 grey levels"),
        (X.double(), 256, X.float() / 255, "256 grey levels"),
        (X.float() / 255, 256, X.float() / 255, "floats in [0, 1], not scaled"),
        (X.float() / 510, 256, X.float() / 510, "not only on the 256 levels"),
        (X % 2, 2, (X % 2).float(), "2 grey levels"),
        (X % 2 > 0, 2, (X % 2).float(), "2 grey levels"),
        (X % 17, 256, (X % 17).float() / 255, "the largest value is 16 of 255"),
        (X.to(torch.uint16) * 9, 4096, X.float() * 9 / 4095, "4096 grey levels"),
        ((X % 2).bfloat16(), 2, (X % 2).float(), "2 grey levels"),
        ((X.float() / 255).requires_grad_(), 256, X.float() / 255, "floats in [0, 1], not scaled"),
        ((X.float() / 255).to_sparse(), 256, X.float() / 255, "floats in [0, 1], not scaled"),
        (X.float() - 99, None, X.float() - 99, "floats from -99 to 15"),
    ],
)
def test_values_are_grey_levels_or_floats_up_to_1_or_real_numbers(x, levels, wanted, said: str) -> None:
    module = fitted(Given(Splits(InMemory(x, Y), InMemory(x, Y), "given"), shape=(1, 4, 4), grey_levels=levels))
    assert torch.equal(consume(module, 1)[0], wanted[module.batches.batch(0)])
    assert said in module.describe() and len(module.fingerprint("train")) == 64


@pytest.mark.parametrize("wrap", [lambda x: InMemory(x, Y), lambda x: Listed(list(x))], ids=["memory", "lazy"])
@pytest.mark.parametrize(
    "x, levels, message",
    [
        (X.float() / 127.5 - 1, 256, r"floats from -1 to 1, but grey_levels=256 requires .*return \(x \+ 1\) / 2"),
        (X.float() / 100, 256, r"floats from 0 to 2.5\d+, but grey_levels=256 requires"),
        (X, 17, r"whole numbers from 0 to 255, but grey_levels=17 requires whole numbers 0..16"),
        (X.to(torch.int16) - 9, 256, r"whole numbers from -9 to 246"),
        (X % 2, 256, r"nearly black with 256 grey levels: set data.grey_levels=2"),
        (X % 2 > 0, 256, r"nearly black with 256 grey levels: set data.grey_levels=2"),
        (X, None, r"as bytes; data.grey_levels=null requires real numbers: set data.grey_levels=256"),
        (X / torch.zeros(()), 256, r"items 0, 1, 2, 3 and 36 more of 40 hold NaN or infinity"),
        (X.to(torch.complex64), None, r"complex numbers: give real and imaginary part as two channels"),
        (X[:, 0], 256, r"items of shape \[4, 4\], but data.shape=\[1, 4, 4\]: give x a channel axis, x\[:, None\]"),
        (X.permute(0, 2, 3, 1), 256, r"items of shape \[4, 4, 1\].*put the channels first"),
    ],
)
def test_data_that_are_not_what_they_promise_are_refused_before_the_first_step(wrap, x, levels, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        data = wrap(x)
        Given((data, data), shape=(1, 4, 4), grey_levels=levels).setup("fit")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "loaded, message",
    [
        (5, r"load\(\) returns a int, which has no len\(\)"),
        (
            {"train": TENSORS, "val": TENSORS},
            r"load\(\) returns a dict, which has names: return Splits\(train, held_out\)",
        ),
        ((X, Y), r"if they are x and labels, return torch.utils.data.TensorDataset\(x, labels\)"),
        ((TENSORS, TENSORS, TENSORS), r"load\(\) returns 3 data sets: return two, \(train, held_out\)"),
        ((Binary, TENSORS), "the values of train and held_out range from 0 to 1 and 0 to 255: bring both to one range"),
        ((TENSORS, Binary), "the values of train and held_out range from 0 to 255 and 0 to 1: bring both to one range"),
        (iter([]), r"load\(\) returns a list_iterator, which has no len\(\)"),
        (torch.utils.data.TensorDataset(X[:1]), "a single item: two are needed"),
        ((Listed([]), TENSORS), "an empty data set"),
        (torch.utils.data.TensorDataset(X, torch.rand(40)), "labels must be whole numbers"),
        (torch.utils.data.TensorDataset(X, torch.eye(40)), r"labels must be whole numbers \(N,\)"),
        (Listed([X[0], X[1], X[2, :, :2]] * 9), "items have several shapes"),
        (Listed([{"image": x} for x in X]), r"an item is a dict: return x or \(x, label\)"),
        (Listed([(x, "cat") for x in X]), "labels must be whole numbers, not 'cat'"),
        (Listed([(x, 0.5) for x in X]), "labels must be whole numbers"),
    ],
)
def test_what_is_no_data_set_is_refused_in_a_line(loaded, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Given(loaded, shape=(1, 4, 4)).setup("fit")


def test_an_item_on_another_scale_than_those_looked_at_is_named() -> None:
    items = [torch.full((1, 4, 4), number % 256) for number in range(3000)]
    items[1001] = items[1001] + 300
    module = fitted(Given((Listed(items), TENSORS), shape=(1, 4, 4)))
    with pytest.raises(ValueError, match=r"item 1001 holds values from 533 to 533, .* are between 0 and 255"):
        module.splits.train.__getitems__([1000, 1001])


def test_colours_of_a_palette_are_no_grey_levels() -> None:
    pictures = [Image.fromarray(x[0].numpy()).convert("RGB").quantize() for x in X]
    with pytest.raises(ValueError, match=r"data.shape=\[3,4,4\]"):
        Given((Listed(pictures),) * 2, shape=(1, 4, 4)).setup("fit")


def test_a_class_that_states_its_grey_levels_admits_no_others() -> None:
    assert Given((TENSORS, TENSORS), shape=(1, 4, 4), grey_levels=None).grey_levels is None
    for make in (lambda: Seventeen(X[:4], grey_levels=None), lambda: Patches(grey_levels=None)):
        with pytest.raises(ValueError, match="data.grey_levels=None must be"):
            make()
    with pytest.raises(ValueError, match="Given: grey_levels=1 must be at least 2"):
        Given(TENSORS, shape=(1, 4, 4), grey_levels=1)


def test_digits_are_split_without_overlap_on_17_levels() -> None:
    module = fitted(Digits(batch_size=1400))
    official = sklearn.datasets.load_digits()
    train, held_out = module.splits.train, module.splits.held_out
    assert (len(train), len(held_out)) == (1400, 397)
    both = torch.cat([train.x, held_out.x]).flatten(1).double().numpy()
    assert sorted(map(bytes, both)) == sorted(map(bytes, official.data))
    assert train.labels.bincount().min() > 0 and held_out.labels.bincount(minlength=10).min() > 0
    levels = consume(module, 1)[0].unique()
    torch.testing.assert_close(levels, torch.arange(17) / 16)
    assert module.describe().startswith("Digits: 1,400 train and 397 held-out 1x8x8 images, 17 grey levels")


def test_patches_are_crops_and_share_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    row, column = np.meshgrid(np.arange(427), np.arange(640), indexing="ij")
    marked = np.stack([column // 4, row % 256, row // 256], -1).astype(np.uint8)
    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: SimpleNamespace(images=[marked, marked]))
    splits = Patches(train_size=3000, held_out_size=2000).splits
    assert splits.train.x[:, 0].max() == 127 and splits.held_out.x[:, 0].min() == 128  # columns 511 and 512
    assert splits.held_out.x[:, 0].max() == 159
    height = splits.train.x[:, 1].int() + 256 * splits.train.x[:, 2].int()
    assert (height.diff(dim=1) == 1).all() and height.min() == 0 and height.max() == 426
    with pytest.raises(ValueError, match=r"data.held_out_size=100000 must be at most 76824"):
        Patches(held_out_size=100_000).load()


@pytest.mark.parametrize("name", ["two_modes", "moons"])
def test_toy2d_points_are_a_fixed_draw_of_their_target(name: str) -> None:
    module, other = (Toy2D(name=name, train_size=4000, held_out_size=500, seed=seed) for seed in (0, 1))
    x = module.images("train")
    assert x.shape == (4000, 2) and x.dtype == torch.float32
    assert torch.equal(x, other.images("train"))
    equal = Toy2D(name=name, train_size=500, held_out_size=500)
    both = torch.cat([equal.images("train"), equal.images("held_out")])
    assert len(both.unique(dim=0)) == 1000  # no held-out point was trained on
    if module.target.modes is not None:
        share = module.labels("train").double().mean().item()
        assert abs(share - 0.8) < 4 * (0.16 / 4000) ** 0.5
        assert torch.equal(module.labels("train") == 1, x.sum(1) > 0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Digits(shape=(1, 16, 16)).splits, r"shape \[1, 8, 8\], but data.shape=\[1, 16, 16\]"),
        (lambda: Digits(grey_levels=256), "data.grey_levels=256 must be 17"),
        (lambda: Toy2D(name="moons", flip=True), "data.flip"),
        (lambda: Toy2D(name="moon"), "Toy2D: name='moon' must be one of eight_gaussians, moons"),
        (lambda: Toy2D(name="moons", train_size=0), "train_size=0 must be at least 1"),
        (lambda: Digits(batch_size=0), "Digits: batch_size=0 must be at least 1"),
        (lambda: Digits(batch_size="4"), "batch_size='4' must be int"),
        (lambda: Digits(seed=None), "seed=None must be int"),
        (lambda: Digits(flip="no"), "flip='no' must be bool"),
        (lambda: Digits(shape=8), r"shape=8 must be tuple\[int, ...\]"),
        (lambda: Digits(shape="1x8x8"), r"shape='1x8x8' must be tuple\[int, ...\]"),
        (lambda: MNIST(data_dir=""), "data.data_dir is empty: set it to the folder of the files"),
        (lambda: MNIST(data_dir=None), "data_dir=None must be str"),
        (lambda: MNIST(data_dir=".", shape=(1, 29, 29)), "data.shape"),
    ],
)
def test_settings_that_cannot_work_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_gives_every_parameter_and_agrees_with_the_defaults(path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(path))
    config.pop("defaults", None)
    read = schema.parameters(config["_target_"])
    module, name = config.pop("_target_").rsplit(".", 1)
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    common = set(OmegaConf.load(ROOT / "conf" / "train.yaml")["data"]) - {"_target_"}
    assert set(config) | common == set(parameters) == set(read)
    assert all(read[key].required is (parameters[key].default is inspect.Parameter.empty) for key in read)
    assert config.pop("seed") == "${seed}"
    for key, value in config.items():
        default = parameters[key].default
        if default is not inspect.Parameter.empty and key != "variant":
            assert value == (list(default) if isinstance(default, tuple) else default), key
    described = {line.split(":")[0] for line in path.read_text().splitlines() if "#" in line}
    assert described >= set(config)


def test_slow_libraries_are_imported_only_where_needed() -> None:
    for path in (ROOT / "diffusion_lab" / "data").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [getattr(node, "module", None) or "", *(a.name for a in getattr(node, "names", []))]
            assert not {name.split(".")[0] for name in names} & {"torchvision", "sklearn", "PIL", "lmdb", "datasets"}, (
                path.name
            )


def test_a_data_set_of_a_user_needs_to_say_no_more_than_its_class_and_shape(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("_target_: my.Data\nshape: [3, 8, 8]\n")
    found = composed("data=mine", "network=unet_small", f"hydra.searchpath=[file://{tmp_path}]")
    given = {"_target_": "my.Data", "shape": [3, 8, 8], "grey_levels": 256, "batch_size": 128}
    assert found["data"] == {**given, "conditional": False, "pairs": None, "augment": 0.0}
    words = ("data=mine", "network=unet_small", "metric=none", "data.conditional=true")
    found = composed(*words, f"hydra.searchpath=[file://{tmp_path}]")
    assert found["data"]["conditional"] is True and found["metric"]["features"] is None
    assert found["model"]["grey_levels"] == 256
    (tmp_path / "data" / "mine.yaml").write_text("_target_: my.Data\nshape: [4, 8, 8]\ngrey_levels: null\n")
    assert composed("data=mine", f"hydra.searchpath=[file://{tmp_path}]")["model"]["grey_levels"] is None
