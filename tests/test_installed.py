"""The package where there is no checkout: installed, from any directory; and where the system lacks what training needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from printed import commands

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory of packages that holds nothing but ours, installed as `pip install .` does."""
    source, site = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    for name in ("diffusion_lab", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    words = [sys.executable, "-m", "pip", "install", *offline, "--target", site, source]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    return site


def python(*words: object, site: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    found = {**os.environ, "PYTHONPATH": str(site), **environment}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=found, capture_output=True, text=True, timeout=100)


def test_the_wheel_carries_every_file_of_conf(site):
    def names(folder: Path) -> list[Path]:
        return sorted(path.relative_to(folder) for path in folder.rglob("*.yaml"))

    assert names(site / "diffusion_lab/conf") == names(ROOT / "conf") and len(names(ROOT / "conf")) > 100
    assert not (site / "conf").exists()


def test_every_command_starts_from_an_installed_package(site, tmp_path):
    script = site / "bin" / "diffusion-lab"
    message = python(script, site=site, cwd=tmp_path)
    for name in ("train", "sample", "compare", "stats", "referee", "import"):
        assert f"diffusion-lab {name}" in message.stdout
    shown = python(script, "train", "--cfg", "job", "-p", "schedule", "schedule=cosine", site=site, cwd=tmp_path)
    assert shown.returncode == 0 and "diffusion_lab.process.Cosine" in shown.stdout, shown.stderr
    shown = python("-m", "diffusion_lab.sample", "--cfg", "job", "-p", "num_samples", site=site, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    refused = python("-m", "diffusion_lab", "train", "modle=ddpm", site=site, cwd=tmp_path)
    assert refused.returncode == 2 and "did you mean model?" in refused.stderr
    unknown = python(script, "trian", site=site, cwd=tmp_path)
    assert unknown.returncode == 2 and "commands: train, sample" in unknown.stderr


@pytest.mark.parametrize("on_path", [True, False], ids=["activated", "not activated"])
def test_a_run_of_an_installed_package_prints_commands_that_work(on_path, site, tmp_path):
    """Where the environment is activated, the console script is on the PATH and printed; otherwise `python -m`."""
    words = ("data=toy2d", "network=mlp", "debug=fast", "logger=csv", "trainer.accelerator=cpu", "trainer.max_steps=1")
    more = ("callback.samples.every_n_steps=null", "callback.evaluation.at_end=false", "sampler_steps=2")
    here = Path(sys.executable).parent
    others = [place for place in os.environ["PATH"].split(os.pathsep) if Path(place) != here]
    path = os.pathsep.join([str(here)] * on_path + others)
    script = site / "bin" / "diffusion-lab"
    done = python(script, "train", *words, *more, "hydra.run.dir=run", site=site, cwd=tmp_path, PATH=path)
    assert done.returncode == 0, done.stderr
    (command,) = commands(done.stdout)
    scripted = on_path and (here / "diffusion-lab").is_file()
    start = "diffusion-lab sample" if scripted else "-m diffusion_lab.sample"
    assert f"{start} ckpt_path={tmp_path}/run" in command
    (elsewhere := tmp_path / "elsewhere").mkdir()
    shell = subprocess.run(
        f"{command} num_samples=2 trainer.accelerator=cpu", shell=True, cwd=elsewhere, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(site), "PATH": path},
    )  # fmt: skip
    assert shell.returncode == 0 and "sampling 2" in shell.stdout, shell.stderr


BLOCKED = """
import runpy, sys
sys.modules["fcntl"] = sys.modules["resource"] = None  # as on Windows
"""


def test_without_locks_a_checkpoint_is_loaded_and_training_refused_in_one_line(tmp_path):
    code = f"{BLOCKED}\nimport diffusion_lab\nload = diffusion_lab.load\ntry:\n    load('nowhere')\n"
    code += "except ValueError as error:\n    print(error)"
    done = python("-c", code, site=ROOT, cwd=tmp_path)
    assert done.returncode == 0 and "ckpt_path=nowhere does not exist" in done.stdout, done.stderr
    for name in ("train", "sample"):
        run = f"{BLOCKED}\nsys.argv = ['x']; runpy.run_path({str(ROOT / name) + '.py'!r}, run_name='__main__')"
        done = python("-c", run, site=ROOT, cwd=tmp_path)
        assert done.returncode == 2 and "Linux and macOS only" in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
