"""`diffusion-lab verify` passes every sampler that is shipped, and fails wrong ones."""

from __future__ import annotations

import json
import math
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_sampler_grid import NAMES
from zygote import run

from diffusion_lab.config.compose import composed, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.sampler import DDIM, EDM, Ancestral, Corrector, Sampler, Step
from diffusion_lab.verification import Check, check_sampler

pytestmark = pytest.mark.filterwarnings("ignore:the first of the sampler")


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_passes(name):
    sampler = instantiate(plain(composed("train", [f"sampler={name}", "data=toy2d"]))["sampler"], "sampler")
    checks = [one for one in check_sampler(sampler) if isinstance(one, Check)]
    assert [str(one) for one in checks if not one.passed] == [] and len(checks) >= 6


def wrong_sign(p, x, t, s, denoise, noise, past):
    d = denoise(x, t)
    return p.alpha(s) * d.x0 - p.sigma(s) * d.eps


def no_root(p, x, t, s, denoise, noise, past):
    by_x, by_x0, variance = p.posterior(s, t)
    return by_x * x + by_x0 * denoise(x, t).x0 + noise(variance)


def noise_twice(p, x, t, s, denoise, noise, past):
    return Ancestral()(p, x, t, s, denoise, noise, past) + noise(math.sqrt(p.reverse_variance(s, t, "fixed_large")))


def half_the_noise(p, x, t, s, denoise, noise, past):
    return Ancestral()(p, x, t, s, denoise, lambda std=1.0: noise(std / 2), past)


def off_by_one(p, x, t, s, denoise, noise, past):
    """The network is told the next time."""
    return DDIM()(p, x, t, s, lambda x, t: denoise(x, s), noise, past)


@dataclass(frozen=True)
class NoiseAtTheEnd(Step):
    def __call__(self, p, x, t, s, denoise, noise, past):
        return DDIM()(p, x, t, s, denoise, noise, past)

    def last(self, p, x, t, denoise, noise, past):
        return denoise(x, t).x0 + noise(0.1)


@dataclass(frozen=True)
class LangevinWithoutRoot2(Corrector):
    steps: int = 20

    def __call__(self, p, x, t, denoise, noise):
        for _ in range(self.steps):
            x = x + 0.1 * p.sigma(t) ** 2 * denoise(x, t).score + noise(math.sqrt(0.1) * p.sigma(t) / 2)
        return x


def heun_of_half_a_step(p, x, t, s, denoise, noise, past):
    return EDM(2)(p, x, t, s + 0.1 * (t - s), denoise, noise, past)


def heun_at_one_time(p, x, t, s, denoise, noise, past):
    """Its second evaluation is told the first time; what is left converges, with order 1."""
    return EDM(2)(p, x, t, s, lambda x, _: denoise(x, t), noise, past)


def looks_at_its_batch(p, x, t, s, denoise, noise, past):
    return DDIM()(p, x, t, s, denoise, noise, past) + 1e-3 * (x - x.mean(0))


WRONG = {
    "sign": (Sampler(wrong_sign), "deviation"),
    "no root": (Sampler(no_root), "deviation"),
    "noise twice": (Sampler(noise_twice), "deviation"),
    "half the noise": (Sampler(half_the_noise), "deviation"),
    "off by one": (Sampler(off_by_one), "order of convergence"),
    "noise at the end": (Sampler(NoiseAtTheEnd()), "deviation"),
    "a corrector without its root": (Sampler(None, LangevinWithoutRoot2()), "deviation"),
    "too short a step": (Sampler(heun_of_half_a_step), "order of convergence"),
    "its second time": (Sampler(heun_at_one_time), "order of convergence"),
    "its batch": (Sampler(looks_at_its_batch), "an image alone"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_samplers_fail(name):
    sampler, check = WRONG[name]
    assert any(check in one for one in failures(check_sampler(sampler)))


def failures(findings):
    """The names of the checks that fail."""
    return [one.name for one in findings if isinstance(one, Check) and not one.passed]


README = (Path(__file__).parents[1] / "README.md").read_text()
MINE = textwrap.dedent(re.search(r"```python\n((?:(?!```).)*class SecondOrder.*?)```", README, re.DOTALL)[1])
"""The example of the README."""


def test_a_sampler_of_ones_own_is_verified_by_its_name(tmp_path):
    assert sum(map(bool, MINE.splitlines())) <= 10
    (tmp_path / "my_samplers.py").write_text(MINE)
    (tmp_path / "conf/sampler").mkdir(parents=True)
    (tmp_path / "conf/sampler/mine.yaml").write_text(
        "defaults: [custom]\nsteps: 20\npredictor: {_target_: my_samplers.SecondOrder}\n"
    )
    command = ("-m", "diffusion_lab.verify", "sampler=mine", "--config-dir", "conf")
    passed = run(*command, cwd=tmp_path, DIFFUSION_LAB_PACKAGES="my_samplers")
    assert passed.returncode == 0 and "28 of 28 checks passed" in passed.stdout, passed.stderr + passed.stdout
    folder = tmp_path / "logs/verify/sampler_mine"
    table = json.loads((folder / "verification.json").read_text())
    orders = [row["value"] for row in table["checks"] if "order of convergence" in row["name"]]
    assert table["passed"] and len(orders) == 4 and all(1.8 < order < 2.2 for order in orders)
    assert {path.name for path in folder.glob("*.png")} == {"convergence.png", "law.png", "samples.png"}
    (tmp_path / "my_samplers.py").write_text(MINE.replace("- p.sigma(s)", "+ p.sigma(s)"))
    failed = run(*command, cwd=tmp_path, DIFFUSION_LAB_PACKAGES="my_samplers")
    assert failed.returncode == 1 and "FAILED" in failed.stdout


def test_what_is_not_there_is_refused():
    refused = run("-m", "diffusion_lab.verify", "sampler=heum")
    assert refused.returncode == 2 and "heun" in refused.stderr and refused.stderr.count("\n") == 1
