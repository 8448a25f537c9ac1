"""Labels and guidance through the commands: train, sample, evaluate, go on, two ranks, a network of one's own."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
import zygote
from PIL import Image

import diffusion_lab

ROOT = Path(__file__).resolve().parents[1]
OLD = ROOT / "tests" / "reference" / "first_edition" / "ddpm.ckpt.xz"

OWN = '''
import torch


class Own(torch.nn.Module):
    """A user's network of images of 8x8, which takes a label and is told by nobody how many there are."""

    def __init__(self):
        super().__init__()
        self.table, self.conv = torch.nn.Embedding(11, 64), torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t, label):
        return self.conv(x) + self.table(label).reshape(-1, 1, 8, 8)


class Deaf(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(1, 1, 3, padding=1)

    def forward(self, x, t):
        return super().forward(x)
'''


def run(script: str, *arguments: object, cwd: Path, code: int = 0, **environment: str) -> str:
    done = zygote.run(ROOT / script, *arguments, cwd=cwd, **environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


FAST = ("debug=fast", "trainer.accelerator=cpu", "variance=fixed_small", "logger=csv", "metric.features.steps=5")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A directory in which a conditional model was trained for a few steps, and its run directory."""
    root = tmp_path_factory.mktemp("conditional")
    run("train.py", *FAST, "data.conditional=true", "guidance=classifier_free", "guidance.scale=2", cwd=root)
    return root, next(root.glob("logs/train/ddpm_digits/*"))


def newest(root: Path) -> Path:
    return max(root.glob("logs/sample/*"), key=lambda path: path.stat().st_mtime_ns)


def test_training_says_what_its_samples_were_asked_to_be(digits):
    results = json.loads((digits[1] / "results.json").read_text())
    assert results["labels"] == "drawn with the training frequencies"
    assert results["guidance"] == "classifier_free, scale 2; calls of both networks are counted"
    assert results["nfe"] == 8  # four steps, two calls each
    record = results["metrics"]["label_agreement_digits_20"]
    assert 0 <= record["value"] <= 1 and record["nfe"] == 8 and record["protocol"]["labels"] == results["labels"]
    assert results["metrics"]["bound_bits_per_dim"]["protocol"]["given"] == "the label"


def test_the_python_door_and_the_command_draw_the_same(digits):
    root, folder = digits
    said = run("sample.py", f"ckpt_path={folder}", "label=each", "num_samples=25", "guidance=none", cwd=root)
    assert "5 network" not in said and "4 network evaluations per sample" in said
    out = newest(root)
    assert json.loads((out / "request.json").read_text())["label"] == list(range(10))
    with np.load(out / "samples.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert labels.tolist() == [i % 10 for i in range(25)]
    height, width = np.asarray(Image.open(out / "samples.png")).shape[:2]
    assert "samples.png shows 20 of 25 samples: 2 of each class" in said and "samples.png, samples.npz" in said
    assert height == 10 * 66 + 2 and width == 2 * 66 + 2  # a row for each class
    model = diffusion_lab.load(folder)
    assert str(model.guidance).startswith("classifier_free, scale 2")
    model.guidance = None
    drawn = model.sample(25, label="each", batch_size=500)
    assert np.array_equal((drawn * 255 + 0.5).byte().permute(0, 2, 3, 1).numpy(), images)


def test_labels_and_guidance_decide_the_directory_and_go_into_results(digits):
    root, folder = digits
    asked = (f"ckpt_path={folder}", "num_samples=20", "npz=false")
    run("sample.py", *asked, "label=3", cwd=root)
    first = newest(root)
    weaker = folder / "checkpoints" / "step_00000002.ckpt"
    more = ("guidance=autoguidance", f"guidance.ckpt_path={weaker}", "guidance.interval=[0.1,100]", "evaluate=true")
    said = run("sample.py", *asked, "label=[3]", *more, "likelihood=none", cwd=root)
    assert "warning: the samples are of class 3 only, and are scored against images of all classes" in said
    second = newest(root)
    assert first != second
    request = json.loads((second / "request.json").read_text())
    assert request["label"] == [3] and request["guidance"]["scale"] == 1.5 and len(request["guidance"]["weak"]) == 64
    results = json.loads((second / "results.json").read_text())
    assert results["labels"] == "3" and "0.1 <= sigma/alpha <= 100" in results["guidance"]
    assert 4 < results["nfe"] < 8 and "label_agreement_digits_20" in results["metrics"]


REFUSED = [
    ("label=10", "label=10 is not a class of this model: choose 0 to 9"),
    ("label=cat", "label=cat is not a class"),
    ("label=[0,-1]", "label=-1 is not a class"),
    ("guidance=classifier_free guidance.scale=-2", "must be in [0, inf)"),
    ("guidance=classifier_free guidance.interval=[3,1]", "must be [low, high]"),
    ("guidance=autoguidance guidance.ckpt_path=nowhere", "nowhere"),
    ("likelihood=flow evaluate=true", "likelihood.flow.guided_field=true"),
]


@pytest.mark.parametrize("words, message", REFUSED, ids=[words for words, _ in REFUSED])
def test_what_a_conditional_model_cannot_do_is_refused_in_one_line(digits, words, message):
    root, folder = digits
    before = sorted(root.rglob("*"))
    said = run("sample.py", f"ckpt_path={folder}", *words.split(), cwd=root, code=2)
    assert not message.startswith("label=") or "checkpoints/step_00000004.ckpt)" in said
    assert message in said and said.strip().count("\n") == 0 and sorted(root.rglob("*")) == before


def test_an_unconditional_checkpoint_of_before_refuses_labels_and_their_guidance(tmp_path):
    file = tmp_path / "old.ckpt"
    file.write_bytes(lzma.decompress(OLD.read_bytes()))
    for words, message in (
        (["label=1"], "trained without labels"),
        (["guidance=classifier_free"], "trained without labels"),
        (["guidance.scale=2"], "guidance.scale=2 needs a guidance"),
    ):
        said = run("sample.py", f"ckpt_path={file}", *words, cwd=tmp_path, code=2)
        assert message in said and said.strip().count("\n") == 0 and not [*tmp_path.glob("logs/sample/*")]


def test_a_conditional_run_goes_on_and_two_ranks_draw_what_one_does(digits, tmp_path):
    words = (*FAST, "data.conditional=true", f"paths.log_dir={tmp_path}", "callback.evaluation.at_end=false")
    run("train.py", *words, "trainer.devices=2", "trainer.max_steps=2", cwd=tmp_path)
    (folder,) = tmp_path.glob("train/ddpm_digits/*")
    run("train.py", f"ckpt_path={folder}", "trainer.max_steps=3", "decay_steps=2", cwd=tmp_path)
    assert diffusion_lab.load(folder).labels.classes == 10
    for devices in (1, 2):
        run(
            "sample.py", f"ckpt_path={folder}", "num_samples=10", "batch_size=5", "guidance=classifier_free",
            "trainer.accelerator=cpu", f"trainer.devices={devices}", f"out={tmp_path / str(devices)}", cwd=tmp_path,
        )  # fmt: skip
    one, two = (np.load(tmp_path / str(devices) / "samples.npz") for devices in (1, 2))
    assert np.array_equal(one["arr_0"], two["arr_0"]) and np.array_equal(one["arr_1"], two["arr_1"])


def test_a_network_of_ones_own_takes_labels_and_one_that_takes_none_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    here = {"DIFFUSION_LAB_PACKAGES": "mine", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    (tmp_path / "conf" / "network").mkdir(parents=True)
    for name in ("Own", "Deaf"):
        (tmp_path / "conf" / "network" / f"{name.lower()}.yaml").write_text(f"_target_: mine.{name}\n")
    words = (*FAST, "data.conditional=true", "--config-dir", str(tmp_path / "conf"), "callback.evaluation.at_end=false")
    run("train.py", *words, "network=own", cwd=tmp_path, **here)
    (folder,) = tmp_path.glob("logs/train/*/*")
    config = torch.load(next(folder.glob("checkpoints/*4.ckpt")), weights_only=True)["config"]
    assert config["model"]["labels"]["counts"][0] > 100 and "classes" not in config["model"]["network"]
    run(
        "sample.py", f"ckpt_path={folder}", "label=7", "num_samples=4", "guidance=classifier_free", cwd=tmp_path, **here
    )
    said = run("train.py", *words, "network=deaf", cwd=tmp_path, code=2, **here)
    assert "Deaf.forward takes no label" in said
