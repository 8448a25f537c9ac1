"""CelebA: small files in the official layout, the crop of the papers, and the published settings that come with it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from experiment import composed
from official import MEANING, at, flat, without_meaning
from PIL import Image
from torchvision import transforms

from diffusion_lab.data import CelebA, InMemory

PARTITION = [0, 0, 2, 1, 0, 2, 0, 1, 0, 2]  # of 000001.jpg, 000002.jpg, ...
ZIP, LIST, ATTRIBUTES = "img_align_celeba.zip", "list_eval_partition.txt", "list_attr_celeba.txt"


def face(number: int) -> np.ndarray:
    """(218, 178, 3): columns in red, rows in green, the number in blue; smooth, as JPEG keeps it."""
    row, column = np.meshgrid(np.arange(218), np.arange(178), indexing="ij")
    return np.stack([column, row, np.full_like(row, 20 * number)], -1).astype(np.uint8)


def jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(f"img_align_celeba/{name}"), content)
    return out.getvalue()


FACES = {f"{number:06}.jpg": jpeg(face(number)) for number in range(1, 11)}
LISTS = {
    LIST: "".join(f"{name} {part}\n" for name, part in zip(FACES, PARTITION)),
    ATTRIBUTES: "10\nBald Smiling \n"
    + "".join(f"{name} -1 {' 1' if k % 3 else '-1'}\n" for k, name in enumerate(FACES)),
}


def write(root: Path, faces: dict[str, bytes] = FACES, packed: bool = False) -> str:
    """The official files below `root` as data_dir, with the images in a folder or packed."""
    folder = root / "celeba"
    folder.mkdir(parents=True)
    for name, text in LISTS.items():
        (folder / name).write_text(text)
    if packed:
        (folder / ZIP).write_bytes(zipped(faces))
    else:
        (folder / "img_align_celeba").mkdir()
        for name, content in faces.items():
            (folder / "img_align_celeba" / name).write_bytes(content)
    return str(root)


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision takes the digests of the small files for the published ones."""
    contents = {name: text.encode() for name, text in LISTS.items()} | {ZIP: zipped(FACES)}
    listed = [("", hashlib.md5(content).hexdigest(), name) for name, content in contents.items()]
    monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", listed)


def test_the_published_digests_are_those_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(
        FileNotFoundError, match="list_eval_partition.txt .md5 d32c9cbf5e040fd4025c592c306e6668, from h"
    ):
        CelebA(data_dir="nowhere").load()


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("limit", [2048, 0], ids=["memory", "lazy"])
def test_faces_come_in_the_official_parts_through_the_transforms_of_the_papers(
    tmp_path, packed: bool, limit: int
) -> None:
    module = CelebA(data_dir=write(tmp_path, packed=packed), memory_limit_mb=limit, num_workers=2)
    official = transforms.Compose([transforms.CenterCrop(140), transforms.Resize(64), transforms.PILToTensor()])
    for split, number in (("train", 0), ("held_out", 2)):
        names = [name for name, part in zip(FACES, PARTITION) if part == number]
        wanted = torch.stack([official(Image.open(io.BytesIO(FACES[name]))) for name in names])
        data = getattr(module.splits, split)
        assert torch.equal(data.__getitems__(range(len(names)))[0], wanted)
        assert module.size(split) == len(names)
        order = module.images(split) * 255  # in the shuffled order
        assert sorted(map(bytes, order.round().byte().flatten(1).numpy())) == sorted(
            map(bytes, wanted.flatten(1).numpy())
        )
    assert isinstance(module.splits.train, InMemory) is (limit > 0)
    assert module.num_workers == (0 if limit else 2)
    valid = CelebA(data_dir=str(tmp_path), held_out="valid", memory_limit_mb=limit)
    assert valid.images("held_out")[:, 2].mul(255 / 20).mean((1, 2)).round().sort().values.tolist() == [4, 8]


@pytest.mark.parametrize("crop, size", [(140, 64), (140, 32), (178, 64)])
def test_the_crop_is_central_and_a_ramp_stays_a_ramp(tmp_path: Path, crop: int, size: int) -> None:
    x = CelebA(data_dir=write(tmp_path), crop=crop, shape=(3, size, size)).splits.train.x[0].double()
    centres = (torch.arange(size) + 0.5) * crop / size - 0.5
    inner = slice(2, -2)  # at the edges the filter has fewer pixels
    for got, first in ((x[0], (178 - crop) / 2), (x[1].T, (218 - crop) / 2)):
        error = (got - (centres + first))[inner, inner]
        assert error.abs().max() < 2 and error.mean().abs() < 0.1


def test_a_loader_of_many_processes_reads_what_this_one_reads(tmp_path: Path) -> None:
    memory = CelebA(data_dir=write(tmp_path, packed=True), batch_size=3, eval_batch_size=2)
    lazy = CelebA(data_dir=str(tmp_path), batch_size=3, eval_batch_size=2, memory_limit_mb=0, num_workers=3)
    lazy.images("train")  # this process has the archive open when it is forked
    for module in (memory, lazy):
        module.setup("fit")
    for loaders in (
        (memory.train_dataloader(), lazy.train_dataloader()),
        (memory.val_dataloader(), lazy.val_dataloader()),
    ):
        for (x, label), (x_lazy, label_lazy), _ in zip(*loaders, range(20)):
            assert torch.equal(x, x_lazy) and torch.equal(label, label_lazy)


def test_labels_are_those_of_one_attribute(tmp_path: Path) -> None:
    module = CelebA(data_dir=write(tmp_path), attribute="Smiling")
    assert module.splits.train.labels.tolist() == [int(k % 3 > 0) for k, part in enumerate(PARTITION) if part == 0]
    assert CelebA(data_dir=str(tmp_path)).labels("train").tolist() == [0] * 5
    with pytest.raises(ValueError, match=r"data.attribute=Smile does not exist: choose one of Bald, Smiling"):
        CelebA(data_dir=str(tmp_path), attribute="Smile").load()


def test_fingerprints_are_of_the_content_wherever_and_however_it_lies(tmp_path: Path) -> None:
    def prints(root: Path, packed: bool = False, **options) -> tuple[str, str]:
        data_dir = str(root) if root.exists() else write(root, packed=packed)
        module = CelebA(data_dir=data_dir, **options)
        return module.fingerprint("train"), module.fingerprint("held_out")

    first = prints(tmp_path / "first")
    assert first[0] != first[1] and all(len(digits) == 64 for digits in first)
    assert prints(tmp_path / "second") == first
    assert prints(tmp_path / "zip", packed=True) == first == prints(tmp_path / "zip", memory_limit_mb=0)
    assert prints(tmp_path / "first", attribute="Smiling", seed=3, batch_size=5, flip=False) == first
    assert prints(tmp_path / "first", crop=178)[0] != first[0] != prints(tmp_path / "first", shape=(3, 32, 32))[0]

    changed = face(1)
    changed[100, 100] += 1
    content = jpeg(changed)
    (tmp_path / "second" / "celeba" / "img_align_celeba" / "000001.jpg").write_bytes(content)
    assert prints(tmp_path / "second")[0] != first[0] and prints(tmp_path / "second")[1] == first[1]


def test_missing_cut_and_foreign_files_are_named_and_left_alone(tmp_path: Path) -> None:
    data_dir = write(tmp_path, packed=True)
    folder = tmp_path / "celeba"

    def refused(error: type[Exception], message: str, **options) -> None:
        with pytest.raises(error, match=message) as caught:
            CelebA(data_dir=data_dir, **options).splits.train.__getitems__(range(5))
        assert "\n" not in str(caught.value)

    whole = (folder / ZIP).read_bytes()
    (folder / ZIP).write_bytes(whole[:-50])
    refused(ValueError, r"img_align_celeba.zip is damaged \(md5 .*remove it and download it again")
    (folder / ZIP).unlink()
    refused(
        FileNotFoundError, r"img_align_celeba is missing or empty: put img_align_celeba.zip \(md5 .*CelebA.html\) into"
    )
    images = folder / "img_align_celeba"
    images.mkdir()
    for name, content in FACES.items():
        (images / name).write_bytes(content)
    (images / "000005.jpg").write_bytes(FACES["000005.jpg"][:-500])
    refused(ValueError, r"000005.jpg is not a readable 8-bit image", memory_limit_mb=0)
    refused(ValueError, r"000005.jpg is not a readable 8-bit image")
    (images / "000005.jpg").write_bytes(b"")
    refused(FileNotFoundError, r"000005.jpg is missing or empty: put img_align_celeba.zip .* unpack it")
    (images / "000005.jpg").write_bytes(jpeg(face(5)[:64, :64]))
    refused(ValueError, r"000005.jpg is not a .*64x64 pixels, smaller than data.crop=140")
    (images / "000005.jpg").unlink()
    refused(FileNotFoundError, r"000005.jpg is missing or empty")
    (folder / LIST).write_text(LISTS[LIST].replace("000002.jpg 0", "000002.jpg 1"))
    refused(ValueError, r"list_eval_partition.txt is damaged \(md5")
    assert (folder / LIST).exists() and len(list(images.iterdir())) == 9
    shutil.rmtree(folder)
    refused(FileNotFoundError, r"list_eval_partition.txt is missing or empty: put list_eval_partition.txt \(md5")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop": 179}, r"CelebA: crop=179 must be in \[1, 178\]"),
        ({"crop": 0}, r"crop=0 must be in \[1, 178\]"),
        ({"held_out": "val"}, r"held_out='val' must be one of test, valid"),
        ({"shape": (3, 64, 32)}, r"data.shape=\[3, 64, 32\] must be square"),
        ({"shape": (2, 64, 64)}, r"data.shape=\[2, 64, 64\] must be \[1 or 3"),
        ({"num_workers": -1}, r"num_workers=-1 must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_named(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CelebA(data_dir=".", **options)


def test_ncsnv2_gets_every_number_of_its_official_configuration() -> None:
    c = composed("model=ncsnv2", "data=celeba")
    reference = Path(__file__).parent / "reference" / "constants.json"
    official = flat(json.loads(reference.read_text())["configs"]["ncsnv2:celeba"])
    keys = set(official) - without_meaning("ncsnv2:celeba", c) - {"data.dataset"}
    ours = {key: MEANING[key](c) if callable(MEANING[key]) else at(c, MEANING[key]) for key in keys}
    assert ours == {key: official[key] for key in keys}
    assert {"training.n_iters", "model.num_classes", "model.sigma_begin", "data.image_size"} <= keys
    assert (c["sampler"]["corrector"]["step_size"], c["sampler"]["corrector"]["steps"]) == (3.3e-6, 5)
    assert c["sampler"]["denoise"] is True and c["data"]["crop"] == 140


def test_ncsn_and_score_sde_get_the_numbers_of_their_programs() -> None:
    ncsn = composed("model=ncsn", "data=celeba")
    assert ncsn["data"]["shape"] == [3, 32, 32] and ncsn["network"]["channels"] == 128
    assert (ncsn["optimizer"]["lr"], ncsn["trainer"]["max_steps"], ncsn["model"]["levels"]) == (1e-3, 200001, 10)
    words = "model=score_sde sde=ve_discrete data=celeba network.embedding=positional sampler.corrector.snr=0.17"
    assert words in (Path(__file__).parents[1] / "conf/recipe/score_sde_celeba.yaml").read_text()
    sde = composed(*words.split())
    assert sde["schedule"]["sigma_max"] == 90 and sde["data"]["held_out"] == "valid" and sde["data"]["shape"][1] == 64
    assert (sde["trainer"]["max_steps"], sde["callback"]["ema"]["decay"], sde["warmup_steps"]) == (1300001, 0.999, 5000)
    assert sde["network"]["multipliers"] == [1, 2, 2, 2] and sde["network"]["blocks"] == 4
