"""Control through the command line: guides and masks from files, their picture, and what is refused."""

from __future__ import annotations

import importlib
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import zygote
from PIL import Image
from sklearn.datasets import load_digits

from diffusion_lab.config.instantiate import resolve
from diffusion_lab.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
OLD = Path(__file__).parent / "reference" / "first_edition" / "ddpm.ckpt.xz"
GUIDES = load_digits().images[:3] / 16


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint, three guides, and a mask whose right half is generated."""
    folder = tmp_path_factory.mktemp("control")
    (folder / "model.ckpt").write_bytes(lzma.decompress(OLD.read_bytes()))
    (folder / "guides").mkdir()
    for i, guide in enumerate(GUIDES):
        Image.fromarray((guide * 255).round().astype(np.uint8)).save(folder / "guides" / f"{i}.png")
    half = np.zeros((8, 8), dtype=np.uint8)
    half[:, 4:] = 255
    Image.fromarray(half).save(folder / "mask.png")
    Image.fromarray(half[:4]).save(folder / "short.png")
    Image.fromarray(half // 2).save(folder / "grey.png")
    (folder / "mixed").mkdir()
    Image.fromarray(half).save(folder / "mixed" / "a.png")
    Image.fromarray(half[:4]).save(folder / "mixed" / "b.png")
    Image.fromarray(0 * half).save(folder / "black.png")
    (folder / "empty").mkdir()
    (folder / "two").mkdir()
    for name in "ab":
        Image.fromarray(half).save(folder / "two" / f"{name}.png")
    (folder / "broken.png").write_bytes(b"not an image")
    return folder


def sample(place, *words, out="out"):
    settings = ("num_samples=7", "sampler.steps=4", "batch_size=4", "trainer.accelerator=cpu", f"out={place / out}")
    return zygote.run(ROOT / "sample.py", f"ckpt_path={place / 'model.ckpt'}", *settings, *words, cwd=place)


def test_inpainted_samples_keep_the_known_half_of_their_guides(place):
    done = sample(place, "control=inpaint", "guide=guides", "mask=mask.png", out="inpaint")
    assert done.returncode == 0, done.stderr
    images = np.load(place / "inpaint" / "samples.npz")["arr_0"].astype(float) / 255
    for i, image in enumerate(images):
        assert np.abs(image[:, :4, 0] - GUIDES[i % 3][:, :4]).max() < 0.04  # of 16 grey levels
    assert np.abs(images[0, :, 4:] - images[3, :, 4:]).max() > 0.1  # the same guide, another sample
    with Image.open(place / "inpaint" / "control.png") as picture:
        assert picture.size == (6 * 64 + 7 * 2, 3 * 64 + 4 * 2 + 18)  # guide, measured, 3 samples, spread
    spec = json.loads((place / "inpaint" / "request.json").read_text())
    assert spec["control"]["name"] == "replacement" and spec["control"]["operator"]["kind"] == "Mask"


@pytest.mark.parametrize(
    "words",
    [
        ("control=sdedit", "guide=guides/1.png", "t0=0.4", "trajectory=true"),
        ("control=sdedit", "guide=guides", "mask=mask.png", "control.repeats=2", "sampler=heun"),
        ("control=repaint", "guide=guides", "mask=mask.png", "control.jump_length=2", "control.resamplings=2"),
        (
            "control=pigdm",
            "guide=guides",
            "control/operator=block_average",
            "control.operator.factor=2",
            "sampler=ddim",
        ),
        ("control=dps", "guide=guides", "control/operator=blur", "evaluate=true"),
    ],
    ids=lambda words: words[0].partition("=")[2],
)
def test_every_control_samples_with_every_kind_of_sampler(place, words):
    out = words[0].partition("=")[2] + str(len(words))
    done = sample(place, *words, out=out)
    assert done.returncode == 0, done.stderr
    assert (place / out / "control.png").is_file()
    named = ("samples.png", "control.png", *["trajectory.png"] * ("trajectory=true" in words), "samples.npz")
    assert f"{out}: {', '.join(named)}\n" in done.stdout  # and every file that is named exists
    assert all((place / out / name).is_file() for name in named)
    if "evaluate=true" in words:
        results = json.loads((place / out / "results.json").read_text())
        assert results["control"].startswith("dps") and not any("bound" in name for name in results["metrics"])


def test_samples_of_another_guide_do_not_join_those_of_the_first(place):
    assert sample(place, "control=sdedit", "guide=guides/0.png", out="joined").returncode == 0
    refused = sample(place, "control=sdedit", "guide=guides/1.png", out="joined")
    assert refused.returncode == 2 and "control" in refused.stderr


REFUSED = {
    "guide=guides": "guide=guides has no effect without a control: choose control=sdedit",
    "t0=0.3 control=inpaint guide=guides mask=mask.png": "t0=0.3 has no effect without control=sdedit",
    "control=sdedit": "needs a guide",
    "control=sdedit guide=": "needs a guide",
    "control=inpaint guide=guides": "needs mask=FILE: white where pixels are generated",
    "control=sdedit guide=nowhere": "guide=nowhere does not exist: an image file or a folder is needed",
    "control=dps control/operator=blur guide=guides mask=mask.png": "this control takes no mask: leave it out, or choose",
    "control=sdedit guide=guides t0=0": "t0=0 must be in (0, 1]",
    "control=sdedt guide=guides": "did you mean sdedit?",
}
"""Refused before torch is imported."""

MISFITS = {
    "control=inpaint guide=guides mask=short.png": "mask=short.png has 8x4 pixels, and the model's images 8x8",
    "control=inpaint guide=guides mask=grey.png": "mask=grey.png has grey pixels",
    "control=inpaint guide=guides mask=black.png": "mask=black.png has one colour only",
    "control=inpaint guide=guides mask=two": "mask=two holds 2 masks for 3 guides: give one, or one for each guide",
    "control=sdedit guide=short.png": "guide of shape (1, 4, 8) does not fit images of shape (1, 8, 8); guide_resize=true makes the guide 8x8",
    "control=sdedit guide=guides t0=0.0005": "t0=0.0005 leaves no step to make: it must be in (0.001, 1]",
    "control=sdedit guide=mixed": "images of one size are needed, found 8x4, 8x8: guide_resize=true",
    "control=sdedit guide=empty": "guide=empty is neither an image file nor a folder of images",
    "control=sdedit guide=broken.png": "broken.png is not an image file that Pillow reads",
    "control=colorize guide=guides": "needs images of several channels, and these have 1: use another control",
    "control=inpaint guide=guides mask=mask.png noise=true sampler=ddim": "controlled samples depend on their guides",
    "control=sdedit guide=guides likelihood=bound evaluate=true": "a controlled model has no likelihood",
}


@pytest.mark.parametrize("words", [*REFUSED, *MISFITS])
def test_wrong_input_is_one_line(place, words):
    refused = sample(place, *words.split(), out="refused")
    assert refused.returncode == 2 and (REFUSED | MISFITS)[words] in refused.stderr and refused.stderr.count("\n") == 1
    assert not (place / "refused").exists()


def test_a_guide_of_another_size_is_resized_where_that_is_asked_for(place):
    done = sample(place, "control=sdedit", "guide=mixed", "guide_resize=true", out="resized")
    assert done.returncode == 0, done.stderr


def test_an_operator_of_deepinv_is_a_yaml_of_the_users_own(place):
    pytest.importorskip("deepinv")
    (place / "conf" / "control" / "operator").mkdir(parents=True, exist_ok=True)
    (place / "conf" / "control" / "operator" / "few.yaml").write_text(
        "_target_: deepinv.physics.Inpainting\nimg_size: [1, 8, 8]\nmask: 0.5\n"  # random pixels
    )
    words = ("control=pigdm", "control/operator=few", "guide=guides", "--config-dir", "conf")
    assert sample(place, *words, out="few").returncode == 0
    more = sample(place, *words, "num_samples=9", out="few")  # the same random pixels: samples join the first
    assert more.returncode == 0, more.stderr
    refused = sample(place, *words, "+control.operator.pixelwise=[]", "control.operator.img_size=8", out="few2")
    assert refused.returncode == 2 and "control.operator: " in refused.stderr and refused.stderr.count("\n") == 1
    spec = json.loads((place / "few" / "request.json").read_text())
    assert spec["control"]["operator"]["physics"]["kind"] == "Inpainting"


OWN = """
from diffusion_lab.control import Control, LinearOperator, SDEdit


class TopRows(LinearOperator):
    scale = 1.0

    def __call__(self, x):
        return x[..., :4, :]

    def transpose(self, y):
        return y.new_zeros(*y.shape[:-2], 8, 8).index_copy(-2, y.new_tensor(range(4)).long(), y)


class Shifted(SDEdit):
    def begin(self, x, z, alpha, sigma):
        return super().begin(x, z, alpha, sigma) + 0.1


class Foreign:
    def __init__(self, guide):
        pass
"""


@pytest.fixture(scope="module")
def own(place):
    """The folder with a control, an operator, and a class that is neither, in a package of the user's own."""
    (place / "my_controls.py").write_text(OWN)
    (place / "own" / "control" / "operator").mkdir(parents=True)
    (place / "own" / "control" / "operator" / "top.yaml").write_text("_target_: my_controls.TopRows\n")
    (place / "own" / "control" / "shifted.yaml").write_text("_target_: my_controls.Shifted\nt0: ${t0}\n")
    (place / "own" / "control" / "foreign.yaml").write_text("_target_: my_controls.Foreign\n")
    return place


@pytest.mark.parametrize(
    "words", [("control=shifted", "t0=0.3"), ("control=inpaint", "control/operator=top")], ids="ab"
)
def test_controls_and_operators_of_the_users_own_give_the_same_images_on_two_ranks(own, words, monkeypatch):
    monkeypatch.setenv("DIFFUSION_LAB_PACKAGES", "my_controls")
    images = []
    for ranks in (1, 2):
        out = f"{words[0][8:]}{ranks}"
        done = sample(own, *words, "guide=guides", "--config-dir", "own", f"trainer.devices={ranks}", out=out)
        assert done.returncode == 0, done.stderr
        images.append(np.load(own / out / "samples.npz")["arr_0"])
    assert len(images[0]) == 7 and (images[0] == images[1]).all()
    if "control/operator=top" in words:
        assert np.abs(images[0][0, :4, :, 0] / 255 - GUIDES[0][:4]).max() < 0.04


def test_a_class_of_the_users_own_that_is_no_control_is_refused(own, monkeypatch):
    monkeypatch.setenv("DIFFUSION_LAB_PACKAGES", "my_controls")
    refused = sample(own, "control=foreign", "guide=guides", "--config-dir", "own")
    assert refused.returncode == 2 and "Foreign must be a subclass of diffusion_lab.control.Control" in refused.stderr


def test_a_missing_deepinv_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[inverse\]"'):
        resolve("deepinv.physics.Blur", "control.operator")


def absent(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name="deepinv")
