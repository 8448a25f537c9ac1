"""Hugging Face data sets: small ones on disk in every form, and the hub only when asked for."""

from __future__ import annotations

import builtins
import io
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab.data import HuggingFace, InMemory

datasets.disable_progress_bars()
SHAPE = (3, 16, 16)


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def table(numbers: range, encoded=lambda number: png(pixels(number))) -> datasets.Dataset:
    columns = {"picture": [{"bytes": encoded(number), "path": f"{number}.png"} for number in numbers]}
    columns |= {"kind": [number % 3 for number in numbers], "title": [f"picture {number}" for number in numbers]}
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(3), "title": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write_saved(root: Path) -> None:
    datasets.DatasetDict({"train": table(range(8)), "test": table(range(8, 11))}).save_to_disk(root)


def write_parquet(root: Path) -> None:
    (root / "data").mkdir(parents=True)
    table(range(8)).to_parquet(root / "data" / "train-00000-of-00001.parquet")
    table(range(8, 11)).to_parquet(root / "data" / "test-00000-of-00001.parquet")


def write_folder(root: Path) -> None:
    for number in range(11):
        path = root / ("train" if number < 8 else "test") / str(number % 3) / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels(number)))


WRITERS = {"save_to_disk": write_saved, "parquet": write_parquet, "imagefolder": write_folder}


def module(root: Path, **options) -> HuggingFace:
    options = {"image_column": "picture", "held_out_split": "test", "shape": SHAPE} | options
    return HuggingFace(name=str(root), data_dir=str(root.parent / "cache"), **options)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("limit", [2048, 0], ids=["memory", "lazy"])
def test_images_and_labels_come_from_every_form_on_disk(tmp_path: Path, form: str, limit: int) -> None:
    WRITERS[form](tmp_path / "set")
    columns = {"image_column": "image", "label_column": "label"} if form == "imagefolder" else {"label_column": "kind"}
    splits = module(tmp_path / "set", memory_limit_mb=limit, **columns).splits
    assert isinstance(splits.train, InMemory) is (limit > 0)
    assert splits.how == "splits train, test"
    for data, numbers in ((splits.train, range(8)), (splits.held_out, range(8, 11))):
        order = sorted(numbers, key=lambda number: number % 3) if form == "imagefolder" else numbers  # by folder
        x, labels = data.__getitems__(range(len(data)))
        assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), np.stack([pixels(number) for number in order]))
        assert labels.tolist() == [number % 3 for number in order]


@pytest.mark.parametrize("column", ["bytes", "path"])
def test_a_column_of_bytes_or_of_paths_will_do(tmp_path: Path, column: str) -> None:
    contents = {number: png(pixels(number)) for number in range(30)}
    for number, content in contents.items():
        (tmp_path / f"{number}.png").write_bytes(content)
    columns = {"bytes": list(contents.values()), "path": [str(tmp_path / f"{number}.png") for number in contents]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "set")  # one table, which has no splits
    splits = module(tmp_path / "set", image_column=column, held_out_split=None, held_out_fraction=0.3).splits
    got = torch.cat([splits.train.x, splits.held_out.x]).permute(0, 2, 3, 1).flatten(1).numpy()
    assert sorted(map(bytes, got)) == sorted(pixels(number).tobytes() for number in range(30))
    assert splits.train.labels.unique().tolist() == [0]


def test_without_a_held_out_split_rows_are_held_out_by_their_number(tmp_path: Path) -> None:
    def parts(count: int) -> tuple[set[bytes], set[bytes]]:
        table(range(count)).save_to_disk(tmp_path / str(count))
        splits = module(tmp_path / str(count), held_out_split=None, held_out_fraction=0.3).splits
        return tuple(set(map(bytes, part.x.flatten(1).numpy())) for part in (splits.train, splits.held_out))

    train, held_out = parts(60)
    assert not train & held_out and len(train | held_out) == 60 and 8 <= len(held_out) <= 30
    more = parts(90)
    assert train < more[0] and held_out < more[1]
    assert len(module(tmp_path / "60", held_out_split=None, held_out_fraction=1e-9).load().held_out) == 1


def test_a_loader_of_many_processes_reads_what_this_one_reads(tmp_path: Path) -> None:
    write_saved(tmp_path / "set")
    memory, lazy = (
        module(tmp_path / "set", memory_limit_mb=limit, num_workers=3, batch_size=3, eval_batch_size=2)
        for limit in (64, 0)
    )
    assert torch.equal(memory.images("train"), lazy.images("train"))
    for each in (memory, lazy):
        each.setup("fit")
    loaders = (memory.train_dataloader(), lazy.train_dataloader()), (memory.val_dataloader(), lazy.val_dataloader())
    for pair in loaders:
        for (x, label), (x_lazy, label_lazy), _ in zip(*pair, range(12)):
            assert torch.equal(x, x_lazy) and torch.equal(label, label_lazy)


def test_fingerprints_are_of_the_bytes_in_whatever_form_they_lie(tmp_path: Path) -> None:
    def prints(root: Path, **options) -> tuple[str, str]:
        found = module(root, **options)
        return found.fingerprint("train"), found.fingerprint("held_out")

    write_saved(tmp_path / "saved")
    write_parquet(tmp_path / "parquet")
    first = prints(tmp_path / "saved")
    assert first[0] != first[1]
    assert first == prints(tmp_path / "parquet") == prints(tmp_path / "parquet", memory_limit_mb=0, label_column="kind")
    shutil.copytree(tmp_path / "saved", tmp_path / "elsewhere" / "other name")
    assert prints(tmp_path / "elsewhere" / "other name") == first
    assert prints(tmp_path / "saved", shape=(3, 8, 8))[0] != first[0] != prints(tmp_path / "saved", resampling="box")[0]

    for place in ("here", "there"):
        write_folder(tmp_path / place / "set")
    here, there = (prints(tmp_path / place / "set", image_column="image") for place in ("here", "there"))
    assert here == there

    def one_pixel(number: int) -> bytes:
        image = pixels(number)
        image[3, 4, 1] ^= number == 5
        return png(image)

    changed = {"train": table(range(8), one_pixel), "test": table(range(8, 11))}
    datasets.DatasetDict(changed).save_to_disk(tmp_path / "changed")
    assert prints(tmp_path / "changed")[0] != first[0] and prints(tmp_path / "changed")[1] == first[1]


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    write_saved(tmp_path / "set")

    def refused(error: type[Exception], message: str, root: Path = tmp_path / "set", **options) -> None:
        with pytest.raises(error, match=message) as caught:
            module(root, **options).splits.train.__getitems__(range(8))
        assert "\n" not in str(caught.value)

    refused(ValueError, r"set has no split validation: choose one of train, test", held_out_split="validation")
    refused(
        ValueError, r"data.image_column=image is not in .*set: choose one of picture, kind, title", image_column="image"
    )
    refused(ValueError, r"data.label_column=label is not in .*choose one of picture, kind, title", label_column="label")
    refused(ValueError, r"data.label_column=title must hold integers", label_column="title")
    refused(ValueError, r"data.image_column=kind holds no images", image_column="kind")
    refused(
        FileNotFoundError,
        r"data.name=.*nowhere cannot be read .*set data.download=true, or",
        tmp_path / "nowhere",
    )
    (tmp_path / "bare").mkdir()
    refused(FileNotFoundError, r"data.name=.*bare cannot be read", tmp_path / "bare")
    arrow = next((tmp_path / "set" / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    refused(FileNotFoundError, r"data.name=.*set cannot be read")
    cut = datasets.DatasetDict(
        {"train": table(range(8), lambda n: png(pixels(n))[: -400 * (n == 6) or None]), "test": table(range(2))}
    )
    cut.save_to_disk(tmp_path / "cut")
    refused(ValueError, r"cut, row 6 of 8 is not a readable 8-bit image", tmp_path / "cut")
    refused(ValueError, r"cut, row 6 of 8 is not a readable 8-bit image", tmp_path / "cut", memory_limit_mb=0)
    with pytest.raises(ValueError, match=r"held_out_fraction=1 must be in \(0, 1\)"):
        module(tmp_path / "set", held_out_fraction=1)
    with pytest.raises(TypeError, match="name"):
        HuggingFace()


def test_the_hub_is_asked_only_with_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is closed to the tests: what is asked for is seen by what the package believes about it."""
    seen = []

    def load_dataset(name: str, config: str | None, cache_dir: str | None):
        seen.append((name, config, datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE))
        return {"train": table(range(40)), "test": table(range(2))}

    with pytest.raises(FileNotFoundError, match=r"data.name=some/thing cannot be read .*; set data.download=true"):
        HuggingFace(name="some/thing").load()  # the real one, which finds no cache
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for place in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    options = {"name": "some/thing", "config": "small", "image_column": "picture", "shape": SHAPE}
    HuggingFace(**options).prepare_data()
    assert seen == []
    HuggingFace(**options).load()
    assert seen == [("some/thing", "small", True, True)]
    HuggingFace(download=True, **options).prepare_data()
    assert seen[1:] == [("some/thing", "small", False, False)]
    assert not datasets.config.HF_HUB_OFFLINE and not huggingface_hub.constants.HF_HUB_OFFLINE  # as before
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # the environment's word counts more
    HuggingFace(download=True, **options).load()
    assert seen[2:] == [("some/thing", "small", True, False)]


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name, *rest):
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'data=huggingface needs the package datasets: pip install -e ".\[hugg'):
        HuggingFace(name="some/thing").load()


@pytest.mark.parametrize("limit", [2048, 0], ids=["memory", "lazy"])
def test_transparency_and_damage_are_treated_as_in_every_reader(tmp_path: Path, limit: int) -> None:
    clear = np.zeros((16, 16, 4), np.uint8)
    contents = [png(clear)] * 5 + [png(pixels(1))[:-300]]
    datasets.Dataset.from_dict({"picture": contents}).save_to_disk(tmp_path / "set")
    options = {"held_out_split": None, "memory_limit_mb": limit, "held_out_fraction": 1e-9}
    with pytest.raises(ValueError, match=r"is not a readable 8-bit image .*data.on_corrupt=skip"):
        module(tmp_path / "set", **options).load()
    data = module(tmp_path / "set", on_corrupt="skip", background=51, **options)
    assert (
        data.images("train") == 0.2
    ).all() and "1 of 6 images is damaged and skipped (data.on_corrupt=skip): " in data.describe()


def test_splits_that_are_not_used_are_told(tmp_path: Path) -> None:
    write_saved(tmp_path / "set")
    assert "not used: test, 3 rows" in module(tmp_path / "set", held_out_split=None).describe()
