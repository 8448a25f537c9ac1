"""LSUN: small LMDB folders in the official layout."""

from __future__ import annotations

import builtins
import io
import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab.data import LSUN, InMemory, lsun


def picture(number: int, width: int = 341, height: int = 256) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return out.getvalue()


def key(number: int) -> bytes:
    return f"{number * 7919 % 1000:040x}".encode()  # not in the order of the numbers


def write(folder: Path, images: dict[int, bytes]) -> Path:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**24) as opened, opened.begin(write=True) as transaction:
        for number, content in images.items():
            transaction.put(key(number), content)
    return folder


TRAIN = {number: encoded(picture(number), "PNG" if number else "WEBP") for number in range(6)}
VAL = {number: encoded(picture(number, 256, 300)) for number in range(6, 9)}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    write(tmp_path / "lsun" / "tower_train_lmdb", TRAIN)
    write(tmp_path / "lsun" / "tower_val_lmdb", VAL)
    return tmp_path


def module(data_dir: Path, **options) -> LSUN:
    return LSUN(data_dir=str(data_dir), **({"category": "tower", "shape": (3, 256, 256)} | options))


@pytest.mark.parametrize("limit", [2048, 0], ids=["memory", "lazy"])
def test_at_256_pixels_images_are_cropped_in_whole_pixels_and_not_resampled(data_dir: Path, limit: int) -> None:
    splits = module(data_dir, memory_limit_mb=limit).splits
    assert isinstance(splits.train, InMemory) is (limit > 0)
    wide = [picture(number)[:, 42:298] for number in sorted(TRAIN, key=key)]  # (341 - 256) // 2 = 42
    assert np.array_equal(splits.train.__getitems__(range(6))[0].permute(0, 2, 3, 1).numpy(), np.stack(wide))
    tall = [picture(number, 256, 300)[22:278] for number in sorted(VAL, key=key)]
    assert np.array_equal(splits.held_out.__getitems__(range(3))[0].permute(0, 2, 3, 1).numpy(), np.stack(tall))
    assert splits.train.labels.tolist() == [0] * 6 and splits.how == "official train and val folders"


def test_below_256_pixels_the_filter_is_the_one_asked_for(data_dir: Path) -> None:
    square = torch.from_numpy(picture(sorted(TRAIN, key=key)[0])[:, 42:298].copy()).permute(2, 0, 1).double()
    box, bilinear = (
        module(data_dir, shape=(3, 128, 128), resampling=name).splits.train.x[0].double()
        for name in ("box", "bilinear")
    )
    assert (box - torch.nn.functional.avg_pool2d(square[None], 2)[0]).abs().max() <= 1
    # Antialiased bilinear at half the size: a triangle over two output pixels, 1/8, 3/8, 3/8, 1/8 of four inputs.
    triangle = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    kernel = (triangle[:, None] * triangle)[None, None].expand(3, 1, 4, 4)
    wanted = torch.nn.functional.conv2d(square[None], kernel, stride=2, padding=1, groups=3)[0]
    assert (bilinear - wanted)[:, 1:-1, 1:-1].abs().max() <= 1.5  # two roundings, one an axis
    assert (box - bilinear).abs().max() > 20


def test_object_categories_hold_out_by_key_and_new_images_move_none(tmp_path: Path) -> None:
    def parts(count: int, root: Path) -> tuple[set[str], set[str]]:
        write(root / "lsun" / "cat", dict.fromkeys(range(count), encoded(picture(0, 40, 32))))
        splits = module(root, category="cat", held_out_fraction=0.3, memory_limit_mb=0).splits
        return tuple({part.source.key(k) for k in range(len(part))} for part in (splits.train, splits.held_out))

    train, held_out = parts(60, tmp_path / "few")
    assert not train & held_out and len(train | held_out) == 60 and 8 <= len(held_out) <= 30
    more = parts(90, tmp_path / "more")
    assert train < more[0] and held_out < more[1]
    assert len(module(tmp_path / "few", category="cat", held_out_fraction=1e-9).load().held_out) == 1


def test_a_loader_of_many_processes_reads_what_this_one_reads(data_dir: Path) -> None:
    options = {"shape": (3, 32, 32), "batch_size": 4, "eval_batch_size": 2}
    memory, lazy = (module(data_dir, memory_limit_mb=limit, num_workers=3, **options) for limit in (64, 0))
    assert torch.equal(memory.images("train"), lazy.images("train"))  # this process has the folder open when forked
    for each in (memory, lazy):
        each.setup("fit")
    for loaders in (
        (memory.train_dataloader(), lazy.train_dataloader()),
        (memory.val_dataloader(), lazy.val_dataloader()),
    ):
        for (x, _), (x_lazy, _), _ in zip(*loaders, range(20)):
            assert torch.equal(x, x_lazy)
    assert torch.equal(memory.images("train"), lazy.images("train"))  # and still has, after they are gone


def test_a_process_that_is_forked_opens_the_folder_for_itself(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data_dir / "lsun" / "tower_train_lmdb"
    ours = lsun.environment(folder)
    assert lsun.environment(folder) is ours
    monkeypatch.setattr(lsun.os, "getpid", lambda: -1)  # as after a fork
    theirs = lsun.environment(folder)
    assert theirs is not ours and theirs.stat()["entries"] == 6
    with pytest.raises(lmdb.Error):
        ours.begin()


def test_fingerprints_are_of_keys_and_bytes_wherever_they_lie(data_dir: Path, tmp_path: Path, monkeypatch) -> None:
    def prints(root: Path, **options) -> tuple[str, str]:
        found = module(root, **options)
        return found.fingerprint("train"), found.fingerprint("held_out")

    first = prints(data_dir)
    write(tmp_path / "again" / "lsun" / "tower_train_lmdb", dict(reversed(TRAIN.items())))
    shutil.copytree(data_dir / "lsun" / "tower_val_lmdb", tmp_path / "again" / "lsun" / "tower_val_lmdb")
    assert prints(tmp_path / "again") == first == prints(data_dir, memory_limit_mb=0)
    assert prints(data_dir, resampling="box")[0] != first[0]

    value = bytearray(TRAIN[2])
    value[-1] ^= 1  # of the same length, in what no decoder reads
    write(tmp_path / "other" / "lsun" / "tower_train_lmdb", TRAIN | {2: bytes(value)})
    shutil.copytree(data_dir / "lsun" / "tower_val_lmdb", tmp_path / "other" / "lsun" / "tower_val_lmdb")
    changed = prints(tmp_path / "other", memory_limit_mb=0)
    assert changed[0] != first[0] and changed[1] == first[1]

    monkeypatch.setattr(lsun, "HASHED", 2)  # the first and the last: larger sets than HASHED are sampled, as documented
    assert sorted(TRAIN, key=key).index(2) not in (0, 5)
    few = prints(data_dir, memory_limit_mb=0)
    assert prints(tmp_path / "other", memory_limit_mb=0) == few != first
    write(tmp_path / "longer" / "lsun" / "tower_train_lmdb", TRAIN | {2: TRAIN[2] + b"\0"})
    shutil.copytree(data_dir / "lsun" / "tower_val_lmdb", tmp_path / "longer" / "lsun" / "tower_val_lmdb")
    assert prints(tmp_path / "longer", memory_limit_mb=0)[0] != few[0]  # but every length counts


def test_missing_cut_and_foreign_files_are_named(tmp_path: Path) -> None:
    def refused(root: Path, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message) as caught:
            module(root).splits.train.__getitems__(range(6))
        assert "\n" not in str(caught.value)

    def folders(name: str, train: dict[int, bytes] = TRAIN) -> Path:
        write(tmp_path / name / "lsun" / "tower_val_lmdb", VAL)
        return write(tmp_path / name / "lsun" / "tower_train_lmdb", train)

    refused(
        tmp_path,
        FileNotFoundError,
        r"tower_train_lmdb/data.mdb is missing: download http://dl.yf.io/lsun/scenes/tower_tra",
    )
    file = folders("cut") / "data.mdb"
    file.write_bytes(file.read_bytes()[:-4096])
    refused(
        tmp_path / "cut", ValueError, r"tower_train_lmdb/data.mdb is truncated: \d+ bytes of \d+: remove and download"
    )
    (folders("foreign") / "data.mdb").write_bytes(b"<html>not found</html>" * 1000)
    refused(tmp_path / "foreign", ValueError, r"data.mdb is not an LMDB file .*remove it and download it again")
    (folders("empty file") / "data.mdb").write_bytes(b"")
    refused(tmp_path / "empty file", ValueError, r"data.mdb is not an LMDB file")
    folders("none", {})
    refused(tmp_path / "none", ValueError, r"data.mdb holds no image")
    folders("damaged", TRAIN | {3: TRAIN[3][:-2000]})
    refused(tmp_path / "damaged", ValueError, rf"tower_train_lmdb/{key(3).decode()} is not a readable 8-bit image")
    shutil.rmtree(tmp_path / "none" / "lsun" / "tower_val_lmdb")
    folders("no val")
    shutil.rmtree(tmp_path / "no val" / "lsun" / "tower_val_lmdb")
    refused(tmp_path / "no val", FileNotFoundError, r"tower_val_lmdb/data.mdb is missing")


def test_without_the_package_one_line_says_how_to_get_it(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name, *rest):
        if name == "lmdb":
            raise ImportError("No module named 'lmdb'")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'data=lsun needs the package lmdb: pip install -e ".\[lsun\]"'):
        module(data_dir).load()


@pytest.mark.parametrize("limit", [2048, 0], ids=["memory", "lazy"])
def test_transparency_and_damage_are_treated_as_in_every_reader(tmp_path: Path, limit: int) -> None:
    clear = np.zeros((8, 8, 4), np.uint8)  # black, but not to be seen
    cut = encoded(picture(1, 64, 64))[:-2000]
    write(tmp_path / "lsun" / "cat", {0: cut} | dict.fromkeys(range(1, 6), encoded(clear)))
    options = {"category": "cat", "shape": (3, 8, 8), "memory_limit_mb": limit, "held_out_fraction": 0.6}
    with pytest.raises(ValueError, match=r"is not a readable 8-bit image .*data.on_corrupt=skip"):
        module(tmp_path, **options).load()
    data = module(tmp_path, on_corrupt="skip", background=51, **options)
    assert (data.images("train") == 0.2).all()
    assert "1 of 6 images is damaged and skipped (data.on_corrupt=skip): " in data.describe()
