"""The command `diffusion-lab verify`: parts of a user's own package, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from zygote import run

from diffusion_lab.config.command_line import only_overrides
from diffusion_lab.errors import ConfigError
from diffusion_lab.plot.verification import draw, seen
from diffusion_lab.run.verify_command import KINDS, fitting, subject
from diffusion_lab.verification import Chart

WRONG = {
    "loss": (
        "class Mine(OneTimeLoss):\n    def at(self, denoiser, x0, t, eps):\n"
        "        return (denoiser(denoiser.process.perturb(x0, t, eps), t).x0 - eps).square().flatten(1).mean(1)\n",
        "{_target_: my_parts.Mine}",
        "gradient at the optimum",
    ),
    "network": (
        "class Mine(MLP):\n    def forward(self, x, t, label=None):\n        return super().forward(x - x.mean(0), t)\n",
        "{_target_: my_parts.Mine, dimensions: '${data.shape[0]}'}",
        "an item alone",
    ),
    "data": (
        "class Mine(DataModule):\n    def load(self):\n"
        "        return TensorDataset(2 * torch.rand(50, 1, 4, 4), torch.arange(50) % 2)\n",
        "{_target_: my_parts.Mine, shape: [1, 4, 4], grey_levels: 256, batch_size: 10, conditional: false,"
        " augment: 0.0, pairs: null}",
        "refused: Mine",
    ),
}
IMPORTS = """
import torch
from torch.utils.data import TensorDataset
from diffusion_lab.data import DataModule
from diffusion_lab.loss import OneTimeLoss
from diffusion_lab.network import MLP

"""


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_part_of_ones_own_fails_by_its_name(kind, tmp_path):
    source, yaml, check = WRONG[kind]
    (tmp_path / "my_parts.py").write_text(IMPORTS + source)
    (tmp_path / "conf" / kind).mkdir(parents=True)
    (tmp_path / "conf" / kind / "mine.yaml").write_text(yaml)
    command = ("-m", "diffusion_lab.verify", f"{kind}=mine", "--config-dir", "conf", "out=found")
    done = run(*command, cwd=tmp_path, DIFFUSION_LAB_PACKAGES="my_parts")
    table = json.loads((tmp_path / "found/verification.json").read_text())
    failed = [row["name"] for row in table["checks"] if row["verdict"] == "FAILED"]
    assert done.returncode == 1 and not table["passed"], done.stdout + done.stderr
    assert any(check in one for one in failed) and "FAILED" in done.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "name the part to verify: one of sampler=NAME, schedule=NAME, sde=NAME, loss=NAME"),
        (["seed=1"], "name the part to verify"),
        (["sampler=ddim", "schedule=cosine"], "sampler=ddim, schedule=cosine: verify checks one part at a time"),
        (["schedule=cosin"], "schedule=cosin is not an option of schedule (did you mean cosine?)"),
        (["sampler=ddim", "sampler.step=3"], "sampler.step"),
    ],
)
def test_wrong_usage_is_refused(words, message):
    with pytest.raises(ConfigError) as error:
        fitting(subject(words)[0], words)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_parts_may_be_named_with_their_context():
    assert subject(["schedule=cosine", "sde=vp"]) == ("sde", "vp")
    assert subject(["data=toy2d", "network=mlp"]) == ("network", "mlp")
    assert fitting("network", ["network=mlp"]) == [["data=toy2d", "network=mlp"]]
    assert fitting("network", ["network=mlp", "data=toy2d"]) == [["network=mlp", "data=toy2d"]]
    assert "loss.teacher.ckpt_path=." in fitting("loss", ["loss=progressive"])[0]
    assert all(set(kind.context) <= KINDS.keys() for kind in KINDS.values())


def test_the_command_refuses_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "my_parts.py").write_text("class Mine:\n    def __init__(self):\n        raise KeyError('a\\nb')\n")
    (tmp_path / "conf/network").mkdir(parents=True)
    (tmp_path / "conf/network/mine.yaml").write_text("_target_: my_parts.Mine")
    for words in (
        ["guidance=none"],
        ["sampler=ddim", "out=file"],
        ["data=cifar10"],
        ["metric=digits", "data=toy2d"],
        ["network=mine", "--config-dir", "conf"],
    ):
        done = run("-m", "diffusion_lab.verify", *words, cwd=tmp_path, DIFFUSION_LAB_PACKAGES="my_parts")
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_sweep_is_refused():
    with pytest.raises(ConfigError, match="-m: train and sample sweep, verify takes one value"):
        only_overrides(["-m", "sampler=ddim,heun"], "verify")


def test_a_picture_leaves_out_what_has_no_place_on_it(tmp_path):
    lines = {"a": [(1.0, 2.0), (2.0, math.nan), (4.0, 0.0), (8.0, 0.5)], "b": [(1.0, math.nan), (2.0, -1.0)]}
    chart = Chart("order", "steps", "error", lines, {"exact": [(1.0, math.inf)]}, ("log", "log"))
    assert seen(chart).lines == {"a": [(1.0, 2.0), (8.0, 0.5)], "b": []} and seen(chart).exact == {"exact": []}
    draw(chart, tmp_path / "order.png")
    assert (tmp_path / "order.png").stat().st_size > 1000
    draw(replace(chart, lines={"b": lines["b"]}), tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
