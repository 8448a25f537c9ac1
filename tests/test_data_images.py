"""What image files hold and an image library would drop: depth, transparency, orientation, frames, size, damage."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab.data import ImageFolder, InMemory
from diffusion_lab.data.encoded import hold_out
from diffusion_lab.data.framing import Framing
from diffusion_lab.data.image_file import BIT_DEPTHS, read_image, suffixes
from diffusion_lab.storage import machine_cache

RED, GREEN, BLUE = (250, 10, 20), (10, 240, 30), (20, 30, 230)


def encoded(image: Image.Image, kind: str, **options) -> io.BytesIO:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return io.BytesIO(out.getvalue())


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> io.BytesIO:
    """A PNG of any kind, byte by byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts)
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)


def pixels(file: io.BytesIO, channels: int = 3, background: tuple[int, ...] = BLUE) -> np.ndarray:
    return np.array(read_image(file, channels, background)[0])


def half_clear(mode: str) -> Image.Image:
    """(4, 2): red (or grey 200) on the left, clear on the right, where the hidden colour is green (or grey 60)."""
    image = Image.new("RGBA", (4, 2), (*GREEN, 0))
    image.paste((*RED, 255), (0, 0, 2, 2))
    if mode != "LA":
        return image.convert(mode)
    grey = Image.new("LA", (4, 2), (60, 0))
    grey.paste((200, 255), (0, 0, 2, 2))
    return grey


def palette() -> Image.Image:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([*RED, *GREEN])
    image.paste(0, (0, 0, 2, 2))
    return image


def coloured_key() -> Image.Image:
    image = Image.new("RGB", (4, 2), GREEN)
    image.paste(RED, (0, 0, 2, 2))
    return image


TRANSPARENT = {
    "RGBA": lambda: encoded(half_clear("RGBA"), "PNG"),
    "RGBA in TIFF": lambda: encoded(half_clear("RGBA"), "TIFF"),
    "RGBA in WebP": lambda: encoded(half_clear("RGBA"), "WEBP", lossless=True, exact=True),
    "palette, a byte each": lambda: encoded(palette(), "PNG", transparency=b"\xff\x00"),
    "palette, one index": lambda: encoded(palette(), "GIF", transparency=1),
    "RGB with tRNS": lambda: encoded(coloured_key(), "PNG", transparency=GREEN),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_show_the_background_and_no_hidden_colour(name: str) -> None:
    image, traits = read_image(TRANSPARENT[name](), 3, BLUE)
    got = np.array(image)
    assert (got[:, :2] == RED).all() and (got[:, 2:] == BLUE).all() and traits == {"transparent"}


@pytest.mark.parametrize("depth, levels", [(1, (1, 0)), (2, (2, 1)), (4, (13, 4)), (8, (200, 60))])
def test_transparent_greys_show_the_background_at_every_depth(depth: int, levels: tuple[int, int]) -> None:
    solid, clear = levels
    bits = "".join(f"{level:0{depth}b}" for level in (solid, solid, clear, clear)).ljust(8 * max(1, depth // 2), "0")
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    got = pixels(png(4, 1, depth, 0, row, (b"tRNS", struct.pack(">H", clear))))[0]
    assert (got[:2] == solid * 255 // (2**depth - 1)).all() and (got[2:] == BLUE).all()


def test_grey_with_alpha_is_blended_as_much_as_it_is_clear() -> None:
    assert pixels(encoded(half_clear("LA"), "PNG"), 1, (90, 90, 90)).tolist() == [[200, 200, 90, 90]] * 2
    half = Image.new("RGBA", (1, 1), (200, 100, 0, 128))
    assert np.abs(pixels(encoded(half, "PNG"), 3, (0, 0, 0))[0, 0] - np.array([100, 50, 0])).max() <= 1
    opaque, traits = read_image(encoded(Image.new("RGBA", (2, 2), (*RED, 255)), "PNG"), 3, BLUE)
    assert (np.array(opaque) == RED).all() and traits == set()


def deep_png(colour: int, channels: int, *chunks: tuple[bytes, bytes]) -> io.BytesIO:
    row = b"\0" + np.full(2 * channels, 3000, ">u2").tobytes()  # 12-bit data
    return png(2, 2, 16, colour, row * 2, *chunks)


def deep_jpeg2000() -> io.BytesIO:
    content = bytearray(encoded(Image.new("RGB", (16, 16), RED), "JPEG2000").getvalue())
    start = content.index(b"\xff\x4f\xff\x51")
    content[start + 42 : start + 51 : 3] = bytes([15, 15, 15])
    return io.BytesIO(bytes(content))


def tiff(pixels: np.ndarray, sample_format: int) -> io.BytesIO:
    """An uncompressed little-endian TIFF (H, W, C) of any depth."""
    height, width, channels = pixels.shape
    bits = 8 * pixels.itemsize
    entries = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 2 if channels == 3 else 1),
               (273, 4, 200), (277, 3, channels), (278, 3, height), (279, 4, pixels.nbytes), (339, 3, sample_format)]  # fmt: skip
    body = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        count = channels if tag in (258, 339) else 1
        inline = struct.pack("<H", value) if kind == 3 else struct.pack("<I", value)
        if count > 2:
            inline = struct.pack("<I", 150 if tag == 258 else 160)
        body += struct.pack("<HHI", tag, kind, count) + (inline * (count if count == 2 else 1)).ljust(4, b"\0")[:4]
    body = (body + b"\0\0\0\0").ljust(150, b"\0") + struct.pack("<3H", *[bits] * 3)
    body = body.ljust(160, b"\0") + struct.pack("<3H", *[sample_format] * 3)
    return io.BytesIO(body.ljust(200, b"\0") + pixels.tobytes())


DEEP = {
    "RGB PNG": (lambda: deep_png(2, 3), "16 bits"),
    "RGBA PNG": (lambda: deep_png(6, 4), "16 bits"),
    "LA PNG": (lambda: deep_png(4, 2), "16 bits"),
    "L PNG": (lambda: deep_png(0, 1), "pixel mode I;16"),
    "RGB TIFF": (lambda: tiff(np.full((2, 2, 3), 3000, "<u2"), 1), "16 bits"),
    "L TIFF": (lambda: tiff(np.full((2, 2, 1), 3000, "<u2"), 1), "pixel mode I;16"),
    "float TIFF": (lambda: tiff(np.full((2, 2, 1), 0.5, "<f4"), 3), "pixel mode F"),
    "signed TIFF": (lambda: tiff(np.full((2, 2, 1), -3, "i1"), 2), "signed samples"),
    "RGB PPM": (lambda: io.BytesIO(b"P6 2 2 4095\n" + np.full(12, 3000, ">u2").tobytes()), "12 bits"),
    "plain RGB PPM": (lambda: io.BytesIO(b"P3 1 1 65535\n1 2 3\n"), "16 bits"),
    "grey PPM": (lambda: io.BytesIO(b"P5 2 2 65535\n" + np.full(4, 3000, ">u2").tobytes()), "pixel mode I"),
    "JPEG 2000": (deep_jpeg2000, "16 bits"),
    "SGI": (lambda: encoded(Image.new("RGB", (4, 4)), "SGI", bpc=2), "16 bits"),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_refused_whatever_mode_pillow_opens_them_in(name: str) -> None:
    make, reason = DEEP[name]
    with pytest.raises(ValueError, match=reason):
        read_image(make(), 3)


def test_the_depth_of_avif_is_in_its_configuration_box() -> None:
    """Pillow writes 8 bits only, and opens more as if they were 8."""
    head = bytearray(encoded(Image.new("RGB", (16, 16), RED), "AVIF").getvalue())
    flags = head.index(b"av1C") + 6
    depths = {more: BIT_DEPTHS["AVIF"](None, bytes(head[:flags] + bytes([head[flags] | more]))) for more in (0, 64, 96)}
    assert depths == {0: 8, 64: 10, 96: 12}


def test_eight_bits_and_fewer_are_read_in_every_form() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    for kind in ("PNG", "TIFF", "PPM", "SGI", "BMP", "TGA"):
        assert np.array_equal(pixels(encoded(image, kind)), np.array(image)), kind
    assert np.array_equal(pixels(encoded(image, "JPEG2000", irreversible=False)), np.array(image))
    assert np.abs(pixels(encoded(Image.new("RGB", (16, 16), RED), "AVIF")).astype(int) - RED).max() < 12
    one_bit = Image.fromarray(np.eye(8, dtype=bool))
    for kind in ("PNG", "TIFF", "PPM"):
        assert np.array_equal(pixels(encoded(one_bit, kind), 1), 255 * np.eye(8)), kind
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert (pixels(encoded(cmyk, "TIFF")) == (255, 0, 0)).all()
    assert np.array_equal(pixels(tiff(np.array(image)[:2, :2], 1)), np.array(image)[:2, :2])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_photographs_stand_upright(kind: str) -> None:
    image, exif = Image.new("RGB", (16, 8), (0, 0, 0)), Image.Exif()
    image.paste((250, 250, 250), (0, 0, 4, 8))  # the left edge, which orientation 6 turns to the top
    exif[274] = 6
    got = pixels(encoded(image, kind, exif=exif))
    assert got.shape == (16, 8, 3) and got[:3].min() > 200 and got[6:].max() < 50


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken_and_reported(kind: str) -> None:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), GREEN)
    image, traits = read_image(encoded(first, kind, save_all=True, append_images=[second]), 3)
    assert np.abs(np.array(image).astype(int) - RED).max() < 12 and traits == {"frames"}


def test_a_huge_image_is_named_with_the_key_that_reads_it(tmp_path: Path) -> None:
    huge = io.BytesIO(b"P5 20000 10000 255\n")  # Pillow's limit is met before any pixel is read
    with pytest.raises(ValueError, match=r"20000x10000 pixels, more than data.max_pixels=178956970: data.max_pixels=2"):
        read_image(huge, 1)
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 20
    try:
        image = encoded(Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)), "PNG")
        tensor, traits = Framing((1, 10, 10), max_pixels=100)(image)
        assert tensor[0, 9, 9] == 99 and traits == set()
        assert Image.MAX_IMAGE_PIXELS == 20
    finally:
        Image.MAX_IMAGE_PIXELS = before


def noise(path: Path, number: int, width: int = 24, height: int = 20, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(image).save(path, **options)


def module(root: Path, **options) -> ImageFolder:
    return ImageFolder(root=str(root), **({"shape": (3, 16, 16)} | options))


def test_the_background_is_chosen_said_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    for part in ("train", "test"):
        noise(tmp_path / "plain" / part / "a.png", 0)
        (tmp_path / "clear" / part).mkdir(parents=True)
        half_clear("RGBA").save(tmp_path / "clear" / part / "a.png")
    for limit in (64, 0):
        options = {"shape": (3, 2, 4), "flip": False, "memory_limit_mb": limit}
        white, dark = module(tmp_path / "clear", **options), module(tmp_path / "clear", background=(1, 2, 3), **options)
        assert white.images("train")[0, :, 0, 3].tolist() == [1, 1, 1]
        assert (dark.images("train")[0, :, 0, 3] * 255).round().tolist() == [1, 2, 3]
        assert white.fingerprint("train") != dark.fingerprint("train")
        assert "2 of 2 images are transparent: composited over background 1,2,3" in dark.describe()
        plain = [module(tmp_path / "plain", background=grey, **options).fingerprint("train") for grey in (0, 255)]
        assert plain[0] == plain[1]  # nothing there to see it through
    with pytest.raises(ValueError, match=r"ImageFolder: background=256 must be in \[0, 255\]"):
        module(tmp_path / "clear", background=256)


def test_what_pillow_reads_is_used_and_the_rest_is_counted_by_suffix(tmp_path: Path) -> None:
    forms = ("png", "JPG", "webp", "tif", "gif", "ppm", "bmp", "jp2", "avif", "tga")
    for number in range(30):
        noise(tmp_path / "a" / f"{number}.{forms[number % len(forms)]}", number)
    for name, count in ((".txt", 20), (".xyz", 10), ("", 1), (".h5", 2)):
        for number in range(count):
            (tmp_path / "a" / f"n{number}{name}").write_text("no image")
    (tmp_path / ".hidden.png").write_text("left by a file manager")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    said = module(tmp_path).describe()
    assert "35 files skipped: .txt 20, .xyz 10, .h5 2" in said
    assert all(reason in said for reason in ("without suffix 1", "hidden 1", "broken links 1"))
    assert "30 of 30 images have another aspect: cropped to the centre" in said
    assert {".png", ".jpeg", ".tif", ".gif", ".ppm", ".pgm", ".bmp", ".avif", ".jp2"} <= suffixes()
    with pytest.raises(FileNotFoundError, match=r"no image that Pillow reads in .* \(2 files skipped: .npy 2\)"):
        (tmp_path / "b").mkdir()
        for number in range(2):
            (tmp_path / "b" / f"{number}.npy").write_text("no image")
        module(tmp_path / "b").load()


@pytest.mark.parametrize("limit", [64, 0])
def test_enlarging_is_told(tmp_path: Path, limit: int) -> None:
    for number in range(20):
        noise(tmp_path / f"{number}.png", number, 12, 12 if number else 40)
    said = module(tmp_path, memory_limit_mb=limit).describe()
    assert "20 of 20 images are smaller than 16x16: enlarged" in said
    assert "1 of 20 images have another aspect" in said
    assert "smaller" not in module(tmp_path, shape=(3, 12, 12), memory_limit_mb=limit).describe()


def test_links_to_folders_and_files_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    for number in range(10):
        noise(tmp_path / "store" / f"{number}.png", number)
    root = tmp_path / "root"
    (root / "c").mkdir(parents=True)
    for name in ("a", "b"):
        (root / name).symlink_to(tmp_path / "store")
    (root / "c" / "one.png").symlink_to(tmp_path / "store" / "1.png")
    (root / "c" / "up").symlink_to(root)
    splits = module(root).splits
    labels = torch.cat([splits.train.labels, splits.held_out.labels])
    assert labels.bincount().tolist() == [10, 10, 1] and "links to a folder above 1" in " ".join(splits.notes)


@pytest.mark.parametrize(
    "train, held_out",
    [("train", "valid"), ("Training", "Validation"), ("TRAIN", "eval"), ("train", "dev"), ("train", "held-out")],
)
def test_split_folders_have_the_usual_names(tmp_path: Path, train: str, held_out: str) -> None:
    for part in (train, held_out):
        for label in "ab":
            for number in range(3):
                noise(tmp_path / part / label / f"{number}.png", number)
    splits = module(tmp_path).splits
    assert splits.how == f"folders {train} and {held_out}" and len(splits.train) == len(splits.held_out) == 6
    assert splits.train.labels.bincount().tolist() == [3, 3]


@pytest.mark.parametrize(
    "train, held_out",
    [
        ("train2017", "val2017"),
        ("train_set", "test_set"),
        ("Training Images", "Validation Images"),
        ("images_train", "holdout"),
        ("faces/train", "faces/val"),
        ("all/all/train", "all/all/test"),
    ],
)
def test_split_folders_may_carry_more_words_or_lie_in_a_folder_of_their_own(
    tmp_path, train: str, held_out: str
) -> None:
    for part, count in ((train, 4), (held_out, 3)):
        for number in range(count):
            noise(tmp_path / part / "a" / f"{number}.png", number)
    splits = module(tmp_path).splits
    assert splits.how == f"folders {train} and {held_out}"
    assert (len(splits.train), len(splits.held_out)) == (4, 3) and splits.train.labels.tolist() == [0] * 4


@pytest.mark.parametrize(
    "folders, message",
    [
        (("trainA", "trainB", "testA", "testB"), "2 folders for training, trainA, trainB: keep one, or set data.root="),
        (("cat/train", "cat/val", "dog/train", "dog/val"), "train and val inside of cat, dog: put the splits first"),
        (("train2017", "val2017", "unlabeled2017"), "has train2017/ next to unlabeled2017"),
    ],
)
def test_splits_that_would_be_pooled_are_refused(tmp_path: Path, folders, message: str) -> None:
    for number, folder in enumerate(folders):
        noise(tmp_path / folder / "a.png", number)
    with pytest.raises(ValueError, match=message):
        module(tmp_path).load()


def test_classes_may_have_words_of_splits_in_their_names(tmp_path: Path) -> None:
    for number, folder in enumerate(("train_station", "bullet_train", "airport")):
        noise(tmp_path / folder / "a.png", number)
    assert len(module(tmp_path).splits.train) == 2


@pytest.mark.parametrize("limit", [0, 64])
def test_names_that_are_no_utf_8_are_read(tmp_path: Path, limit: int) -> None:
    for number in range(4):
        noise(tmp_path / os.fsdecode(b"\xff%d.png" % number), number)
    data = module(tmp_path, memory_limit_mb=limit)
    assert data.size("train") + data.size("held_out") == 4 and len(data.fingerprint("train")) == 64


def test_folders_beside_train_are_splits_or_refused(tmp_path: Path) -> None:
    noise(tmp_path / "train" / "a" / "0.png", 0)
    noise(tmp_path / "train" / "b" / "1.png", 1)
    alone = module(tmp_path).splits
    assert "in folder train, the only split" in alone.how
    assert torch.cat([alone.train.labels, alone.held_out.labels]).sort().values.tolist() == [0, 1]
    noise(tmp_path / "hold" / "c.png", 2)
    with pytest.raises(ValueError, match=r"has train/ next to hold: the held-out folder may be called held_out, val,"):
        module(tmp_path).load()
    (tmp_path / "hold").rename(tmp_path / "test")
    noise(tmp_path / "val" / "d.png", 3)
    splits = module(tmp_path).splits
    assert splits.how == "folders train and val" and "1 files skipped: outside train and val 1" in splits.notes
    (tmp_path / "train").rename(tmp_path / "Training")
    noise(tmp_path / "train" / "e.png", 4)
    with pytest.raises(ValueError, match="2 folders for training, Training, train"):
        module(tmp_path).load()


def test_split_names_without_train_are_refused_unless_they_are_classes(tmp_path: Path) -> None:
    for part in ("val", "test"):
        noise(tmp_path / part / "a.png", len(part))
    with pytest.raises(ValueError, match=r"has val, test, but none of train, training"):
        module(tmp_path).load()
    noise(tmp_path / "invalid" / "a.png", 9)
    assert len(module(tmp_path).splits.train) == 2


@pytest.mark.parametrize("count", [2, 5, 20])
def test_the_smallest_sets_still_give_two_splits(tmp_path: Path, count: int) -> None:
    for number in range(count):
        noise(tmp_path / f"{number}.png", number)
    first, again = (module(tmp_path).splits for _ in range(2))
    assert len(first.train) + len(first.held_out) == count and min(len(first.train), len(first.held_out)) >= 1
    assert torch.equal(first.held_out.x, again.held_out.x)
    for fraction in (1e-9, 1 - 1e-9):
        train, held_out = hold_out([str(number) for number in range(count)], fraction)
        assert sorted(train + held_out) == list(range(count)) and min(len(train), len(held_out)) == 1
        assert (train, held_out) == hold_out([str(number) for number in range(count)], fraction)


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty images, two of them cut off in their pixels, whose headers are good; and a cache of its own."""
    for number in range(20):
        noise(tmp_path / "images" / f"{number:02}.jpg", number, quality=95)
    for number in (3, 11):
        path = tmp_path / "images" / f"{number:02}.jpg"
        path.write_bytes(path.read_bytes()[:-300])
    monkeypatch.setenv(machine_cache.CACHE, str(tmp_path / "cache"))
    return tmp_path / "images"


def test_the_class_of_every_image_is_its_folder_or_a_conditional_model_is_refused(tmp_path: Path) -> None:
    for place in ("cat/a.png", "cat/b.png", "dog/c.png", "d.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place)
    assert module(tmp_path, held_out_fraction=0.5).splits
    with pytest.raises(ValueError, match="its folder, and 1 of 4 images are in none: move them into folders"):
        module(tmp_path, conditional=True).setup("fit")


@pytest.mark.parametrize("limit", [64, 0])
def test_damaged_pixels_are_found_before_training_or_skipped_and_counted(cut: Path, limit: int) -> None:
    for _ in range(2):  # found again, when it is known already
        with pytest.raises(ValueError, match=r"03.jpg is not a readable .* and 1 more of .*data.on_corrupt=skip") as e:
            module(cut, memory_limit_mb=limit, held_out_fraction=1e-9).setup("fit")
        assert "\n" not in str(e.value)
    skipping = module(cut, memory_limit_mb=limit, on_corrupt="skip", held_out_fraction=0.3)
    skipping.setup("fit")
    assert isinstance(skipping.splits.train, InMemory) is (limit > 0)
    assert skipping.size("train") + skipping.size("held_out") == 18
    assert "2 of 20 images are damaged and skipped (data.on_corrupt=skip): 03.jpg, 11.jpg" in skipping.describe()
    print_before = skipping.fingerprint("train"), skipping.fingerprint("held_out")
    for number in (3, 11):
        (cut / f"{number:02}.jpg").unlink()
    whole = module(cut, memory_limit_mb=limit, held_out_fraction=0.3)
    assert (whole.fingerprint("train"), whole.fingerprint("held_out")) == print_before
    assert torch.equal(whole.images("train"), skipping.images("train"))


def test_a_set_that_was_decoded_is_not_decoded_again_until_it_changes(cut: Path, monkeypatch) -> None:
    for number in (3, 11):
        noise(cut / f"{number:02}.jpg", number, quality=95)
    decoded = []
    call = Framing.__call__
    monkeypatch.setattr(Framing, "__call__", lambda self, file: decoded.append(1) or call(self, file))

    def count(**options) -> int:
        decoded.clear()
        module(cut, memory_limit_mb=0, **options).load()
        return len(decoded)

    assert count() == 20 and count() == 0
    assert count(background=0) == 20 and count(background=0) == 0
    found = [json.loads(path.read_text()) for path in Path(os.environ[machine_cache.CACHE]).rglob("*.json")]
    assert len(found) == 4 and all(each["broken"] == {} for each in found)
    path = cut / "05.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="05.jpg is not a readable"):
        count()
    monkeypatch.setenv(
        machine_cache.CACHE, "/proc/nowhere"
    )  # where nothing can be kept, the check is made all the same
    with pytest.raises(ValueError, match="05.jpg is not a readable"):
        count()


def test_a_fault_of_the_disk_is_no_damaged_image(cut: Path, monkeypatch) -> None:
    def fails(self, file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Framing, "__call__", fails)
    with pytest.raises(OSError, match="Input/output error"):
        module(cut, memory_limit_mb=0, on_corrupt="skip").load()


def test_a_split_that_skipping_leaves_empty_is_told(tmp_path: Path) -> None:
    for part in ("train", "test"):
        noise(tmp_path / part / "a.png", 0)
    path = tmp_path / "test" / "a.png"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(
        ValueError, match=r"no image of a split can be decoded, the first is .*a.png \(image file is truncated\)"
    ):
        module(tmp_path, on_corrupt="skip").load()
