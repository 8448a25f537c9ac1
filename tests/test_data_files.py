"""Data sets on disk: small files in the published formats, folders of images, and what is said of wrong ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from diffusion_lab.data import CIFAR10, MNIST, ImageFolder, InMemory


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Small files in CIFAR-10's format, whose digests torchvision takes for the published ones."""
    official, rng = torchvision.datasets.CIFAR10, np.random.default_rng(0)
    names = [name for name, _ in (*official.train_list, *official.test_list)]
    files = {
        name: pickle.dumps({"data": rng.integers(0, 256, (4, 3072), np.uint8), "labels": [k, 1, 2, 3]})
        for k, name in enumerate(names)
    }
    files["batches.meta"] = pickle.dumps({"label_names": [str(k) for k in range(10)]})
    monkeypatch.setattr(official, "train_list", [[name, md5(files[name])] for name in names[:5]])
    monkeypatch.setattr(official, "test_list", [[names[5], md5(files[names[5]])]])
    monkeypatch.setattr(official, "meta", {**official.meta, "md5": md5(files["batches.meta"])})
    return files


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def test_cifar10_reads_the_official_batches_and_names_missing_and_damaged_ones(cifar, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in cifar.items():
        (folder / name).write_bytes(content)
    splits = CIFAR10(data_dir=str(tmp_path)).splits
    stored = np.concatenate([pickle.loads(cifar[f"data_batch_{k}"])["data"] for k in range(1, 6)])
    assert np.array_equal(splits.train.x.numpy(), stored.reshape(20, 3, 32, 32))
    assert splits.held_out.labels.tolist() == [5, 1, 2, 3]

    damaged = folder / "data_batch_3"
    damaged.write_bytes(cifar["data_batch_3"][:-10])
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged"):
        CIFAR10(data_dir=str(tmp_path), download=True).load()
    assert damaged.exists()
    damaged.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3 is missing: set data.download=true, or put cifar-10-p"):
        CIFAR10(data_dir=str(tmp_path)).load()


def test_cifar10_unpacks_a_whole_archive_and_refuses_a_cut_one(cifar, tmp_path: Path, monkeypatch) -> None:
    content, archive = tar(cifar), tmp_path / "cifar-10-python.tar.gz"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(content))
    archive.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is damaged"):
        CIFAR10(data_dir=str(tmp_path)).prepare_data()
    assert archive.exists() and not (tmp_path / "cifar-10-batches-py").exists()
    archive.write_bytes(content)
    module = CIFAR10(data_dir=str(tmp_path))
    module.prepare_data()
    assert len(module.splits.train) == 20


def test_a_download_appears_only_when_whole(cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tar(cifar)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(content))
    line = {"sends": content[:-100]}
    tools = torchvision.datasets.utils
    monkeypatch.setattr(tools, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(tools, "_urlretrieve", lambda url, name: Path(name).write_bytes(line["sends"]))
    module = CIFAR10(data_dir=str(tmp_path / "new"), download=True)
    with pytest.raises(ConnectionError, match=r"cifar-10-python.tar.gz \(md5 .* put it into"):
        module.prepare_data()
    assert not (tmp_path / "new" / "cifar-10-python.tar.gz").exists()
    line["sends"] = content
    module.prepare_data()
    assert len(module.splits.held_out) == 4


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.fixture(params=["mnist", "fashion_mnist"])
def mnist(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """(variant, folder, images, labels) of small files in MNIST's format, both packed and not."""
    official = {"mnist": torchvision.datasets.MNIST, "fashion_mnist": torchvision.datasets.FashionMNIST}[request.param]
    folder = tmp_path / official.__name__ / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (9, 28, 28), np.uint8), rng.integers(0, 10, 9, np.uint8)
    resources = []
    for part, chosen in (("train", slice(0, 6)), ("t10k", slice(6, 9))):
        for kind, array in (("images-idx3", images[chosen]), ("labels-idx1", labels[chosen])):
            name, content = f"{part}-{kind}-ubyte", idx(array)
            (folder / name).write_bytes(content)
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            resources.append((f"{name}.gz", md5((folder / f"{name}.gz").read_bytes())))
    monkeypatch.setattr(official, "resources", resources)
    return request.param, folder, images, labels


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_reads_packed_or_plain_files_and_pads(mnist, tmp_path: Path, suffix: str) -> None:
    variant, folder, images, labels = mnist
    for path in folder.iterdir():
        if path.suffix != suffix:
            path.unlink()
    splits = MNIST(variant=variant, data_dir=str(tmp_path), shape=(1, 28, 28)).splits
    assert np.array_equal(splits.train.x[:, 0].numpy(), images[:6])
    assert splits.held_out.labels.tolist() == labels[6:].tolist()
    padded = MNIST(variant=variant, data_dir=str(tmp_path), shape=(1, 32, 32)).splits.train.x
    assert np.array_equal(padded[:, 0, 2:30, 2:30].numpy(), images[:6])
    assert padded.sum() == images[:6].sum(dtype=np.int64)

    damaged = folder / f"t10k-images-idx3-ubyte{suffix}"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{damaged.name} is damaged"):
        MNIST(variant=variant, data_dir=str(tmp_path)).load()
    damaged.unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte is missing: set data.download=true, or put"):
        MNIST(variant=variant, data_dir=str(tmp_path)).load()


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(40):
        path = tmp_path / "images" / ("cat" if k % 2 else "dog") / f"{k:02}.{('png', 'webp', 'bmp', 'JPG')[k % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise((20 + k, 24), k).save(path)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "images" / "cat" / "._01.png").write_text("left by a file manager")
    return tmp_path / "images"


def names(module: ImageFolder) -> tuple[set[str], set[str]]:
    train, held_out, *_ = module._split()
    return {path.name for path, _ in train}, {path.name for path, _ in held_out}


def test_image_folder_splits_by_name_and_new_files_move_no_old_one(folder: Path) -> None:
    def module() -> ImageFolder:
        return ImageFolder(root=str(folder), shape=(3, 16, 16), held_out_fraction=0.3)

    splits = module().splits
    assert len(splits.train) + len(splits.held_out) == 40 and 4 <= len(splits.held_out) <= 20
    train, held_out = names(module())
    assert not train & held_out
    for k in range(40, 60):  # listed before all others
        noise((20, 20), k).save(folder / "cat" / f"000{k}.png")
    assert train < names(module())[0] and held_out < names(module())[1]
    paths = [path for path, _ in module()._split()[0]]
    labels = module().splits.train.labels
    assert labels.tolist() == [int(path.parent.name == "dog") for path in paths]
    assert labels[:10].unique().tolist() == [0]
    assert module().labels("train", 10).unique().tolist() == [0, 1]  # measured in an order that mixes them


def test_image_folder_uses_named_splits(folder: Path) -> None:
    for part, label in (("train", "dog"), ("val", "cat")):
        (folder / part).mkdir()
        (folder / label).rename(folder / part / label)
    splits = ImageFolder(root=str(folder), shape=(3, 16, 16)).splits
    assert (len(splits.train), len(splits.held_out)) == (20, 20)
    assert splits.train.labels.unique().tolist() == [1] and splits.held_out.labels.unique().tolist() == [0]


def test_lazy_decoding_equals_decoding_into_memory(folder: Path) -> None:
    memory, lazy = (
        ImageFolder(root=str(folder), shape=(3, 16, 16), batch_size=8, memory_limit_mb=limit, num_workers=2)
        for limit in (1, 0)
    )
    memory.setup("fit")
    lazy.setup("fit")
    assert isinstance(memory.splits.train, InMemory) and not isinstance(lazy.splits.train, InMemory)
    assert (memory.num_workers, lazy.num_workers) == (0, 2)
    for (x, label), (x_lazy, label_lazy), _ in zip(
        memory.train_dataloader(), lazy.train_dataloader(), range(3), strict=False
    ):
        assert torch.equal(x, x_lazy) and torch.equal(label, label_lazy)
    assert torch.equal(memory.images("held_out"), lazy.images("held_out"))


def test_images_are_cropped_to_the_centre_and_resized_with_antialiasing(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = (10, 100, 200)
    exact = noise((8, 8), 0)
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::2] = 200  # resampling without antialiasing would return 0 or 200
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        Image.fromarray(pixels).save(tmp_path / part / "a.png")
        exact.save(tmp_path / part / "b.png")
        Image.fromarray(stripes).save(tmp_path / part / "c.png")
    x = ImageFolder(root=str(tmp_path), shape=(3, 8, 8)).splits.train.x
    assert (x[0] == torch.tensor([10, 100, 200])[:, None, None]).all()
    assert np.array_equal(x[1].permute(1, 2, 0).numpy(), np.array(exact))
    assert (x[2].int() - 100).abs()[..., 1:-1].max() <= 8
    grey = ImageFolder(root=str(tmp_path), shape=(1, 8, 8)).splits.train.x
    assert np.array_equal(grey[1, 0].numpy(), np.array(exact.convert("L")))


def test_a_folder_is_identified_by_names_and_bytes_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    def prints(root: Path, **options) -> tuple[str, str]:
        module = ImageFolder(root=str(root), **({"shape": (3, 16, 16), "held_out_fraction": 0.3} | options))
        return module.fingerprint("train"), module.fingerprint("held_out")

    first = prints(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert prints(tmp_path / "copy") == first == prints(folder, memory_limit_mb=0)
    assert prints(folder, shape=(1, 16, 16))[0] != first[0]
    path = next((tmp_path / "copy").rglob("*.bmp"))
    pixels = bytearray(path.read_bytes())
    pixels[-1] ^= 1  # names and sizes stay as they were
    path.write_bytes(bytes(pixels))
    assert sorted(now == before for now, before in zip(prints(tmp_path / "copy"), first)) == [False, True]
    path.write_bytes((folder / path.relative_to(tmp_path / "copy")).read_bytes())
    assert prints(tmp_path / "copy") == first
    for part in ("train", "test"):
        (tmp_path / "named" / part).mkdir(parents=True)
        noise((16, 16), 0).save(tmp_path / "named" / part / "a.png")
    named = prints(tmp_path / "named")
    (tmp_path / "named" / "train" / "a.png").rename(tmp_path / "named" / "train" / "b.png")
    assert prints(tmp_path / "named")[0] != named[0] and prints(tmp_path / "named")[1] == named[1]


def test_the_crop_is_of_whole_pixels(tmp_path: Path) -> None:
    wide, tall = noise((13, 8), 0), noise((8, 11), 1)
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        wide.save(tmp_path / part / "a.png")
        tall.save(tmp_path / part / "b.png")
    x = ImageFolder(root=str(tmp_path), shape=(3, 8, 8)).splits.train.x.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(x[0], np.array(wide)[:, 2:10]) and np.array_equal(x[1], np.array(tall)[1:9])


@pytest.mark.parametrize("limit", [2048, 0])
def test_unreadable_images_are_named_before_training(folder: Path, limit: int) -> None:
    def load() -> None:
        ImageFolder(root=str(folder), shape=(3, 16, 16), memory_limit_mb=limit).setup("fit")

    broken = folder / "cat" / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n but not for long")
    with pytest.raises(ValueError, match=r"broken.png is not a readable 8-bit image"):
        load()
    Image.fromarray(np.full((16, 16), 60_000, np.uint16)).save(broken)
    with pytest.raises(ValueError, match=r"broken.png is not a readable 8-bit image \(pixel mode I;16\)"):
        load()
    broken.unlink()
    load()


def test_a_cut_image_of_a_lazy_set_is_named_when_it_is_decoded(folder: Path) -> None:
    module = ImageFolder(root=str(folder), shape=(3, 16, 16), memory_limit_mb=0)
    path = Path(module.splits.train.source.location(0))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{path.name} is not a readable"):
        module.splits.train.__getitems__([0])


def test_empty_and_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image .*; set data.root"):
        ImageFolder(root=str(tmp_path)).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder; set data.root"):
        ImageFolder(root=str(tmp_path / "nowhere")).setup("fit")
    noise((9, 9), 0).save(tmp_path / "only.png")
    with pytest.raises(ValueError, match=r"data.held_out_fraction=0.1 of 1 images"):
        ImageFolder(root=str(tmp_path)).setup("fit")
