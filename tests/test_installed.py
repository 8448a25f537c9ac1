"""The package where there is no checkout: a wheel in an environment of its own; and a system that lacks something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from printed import commands

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A read-only environment with the wheel; the libraries are those of this environment, the package is not."""
    source, wheels, home = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "environment"))
    for name in ("diffusion_lab", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    venv.create(home, symlinks=True)
    for words in (
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", wheels, source],
        [*pip, "--python", home / "bin" / "python", "install", *offline, "--find-links", wheels, "diffusion_lab"],
    ):
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    packages = next(home.glob("lib/python*/site-packages"))
    packages.joinpath("libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # whose own .pth are not read
    package = packages / "diffusion_lab"
    before = written(package)
    for path in package.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield home
    assert written(package) == before, "a command has written into the installed package"
    for path in package.rglob("*"):
        path.chmod(0o755)


def written(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def run(*words: object, home: Path, activated: bool = True, **options) -> subprocess.CompletedProcess[str]:
    """A command of the environment, as a user with another home directory starts it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV") and k[:4] != "XDG_"}
    others = [p for p in os.environ["PATH"].split(os.pathsep) if not Path(p, "diffusion-lab").exists()]
    path = os.pathsep.join([*[str(home / "bin")] * activated, *others])
    environment = {**kept, "PATH": path, "HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = str(words[0]) if options.get("shell") else [*map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, **options)


def test_the_wheel_carries_every_file_of_conf(installed):
    def names(folder: Path) -> list[Path]:
        return sorted(path.relative_to(folder) for path in folder.rglob("*.yaml"))

    packages = next(installed.glob("lib/python*/site-packages"))
    assert names(packages / "diffusion_lab/conf") == names(ROOT / "conf") and len(names(ROOT / "conf")) > 100
    assert not (packages / "conf").exists()


def test_every_command_starts_from_an_installed_package(installed, tmp_path):
    def started(*words: object) -> subprocess.CompletedProcess[str]:
        return run(installed / "bin" / words[0], *words[1:], home=installed, cwd=tmp_path)

    message = started("diffusion-lab")
    for name in (
        "train",
        "sample",
        "compare",
        "report",
        "distill",
        "ema",
        "stats",
        "verify",
        "referee",
        "export",
        "import",
        "completion",
    ):
        assert f"diffusion-lab {name}" in message.stdout
    shown = started("diffusion-lab", "train", "--cfg", "job", "-p", "schedule", "schedule=cosine")
    assert shown.returncode == 0 and "diffusion_lab.process.Cosine" in shown.stdout, shown.stderr
    shown = started("python", "-m", "diffusion_lab.sample", "--cfg", "job", "-p", "num_samples")
    assert shown.returncode == 0, shown.stderr
    refused = started("python", "-m", "diffusion_lab", "train", "modle=ddpm")
    assert refused.returncode == 2 and "did you mean model?" in refused.stderr
    unknown = started("diffusion-lab", "trian")
    assert unknown.returncode == 2 and "commands: train, sample" in unknown.stderr


def test_an_installed_wheel_trains_samples_and_compares_and_its_printed_commands_work(installed, tmp_path):
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    work.mkdir()
    elsewhere.mkdir()
    words = ("data=toy2d", "network=mlp", "debug=fast", "logger=csv", "trainer.accelerator=cpu", "trainer.max_steps=1")
    more = ("callback.samples.every_n_steps=null", "callback.evaluation.at_end=false", "sampler_steps=2")
    done = run("diffusion-lab", "train", *words, *more, "hydra.run.dir=run", home=installed, cwd=work)
    assert done.returncode == 0 and "</html>" in (work / "run/report.html").read_text(), done.stderr
    (command,) = commands(done.stdout)
    assert command.startswith(f"diffusion-lab sample ckpt_path={work}/run")
    scored = "num_samples=2 evaluate=true metric.samples=16 likelihood=none trainer.accelerator=cpu out=samples"
    sampled = run(f"{command} {scored}", home=installed, cwd=elsewhere, shell=True)
    assert sampled.returncode == 0 and "results.json" in sampled.stdout, sampled.stderr
    compared = run("diffusion-lab", "compare", "samples", "out=.", home=installed, cwd=elsewhere)
    assert compared.returncode == 0 and (elsewhere / "report.html").is_file(), compared.stderr


def test_printed_commands_work_where_the_environment_is_not_activated(installed, tmp_path):
    python = installed / "bin" / "python"
    code = "from diffusion_lab.config.origin import command; print(command('sample', 'run', 'seed=3'))"
    printed = run(python, "-c", code, home=installed, activated=False, cwd=tmp_path).stdout.strip()
    assert printed == f"{python} -m diffusion_lab.sample ckpt_path={tmp_path}/run seed=3"
    shown = run(f"{printed} --cfg job -p seed", home=installed, activated=False, cwd=tmp_path, shell=True)
    assert (shown.returncode, shown.stdout.split()) == (0, ["3"]), shown.stderr


TAB = """
shopt -s extglob
eval "$(diffusion-lab completion bash)"
COMP_LINE=$1 COMP_POINT=${#1}
_diffusion_lab 2>/dev/null
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("diffusion-lab sa", ["sample"]),
        ("diffusion-lab train model=sc", ["score", "score_sde"]),  # bash replaces what follows the =
        ("diffusion-lab train -m schedule=linear warmup", ["warmup_steps="]),
        ("diffusion-lab sample --config-dir mine sampler=dd", ["ddim", "ddmine"]),
        ("diffusion-lab train model=score", ["score", "score_sde"]),
        ("diffusion-lab sample ckpt_path=", [""]),  # completed as a file
        ("diffusion-lab verify sampler=ddi", ["ddim"]),
        ("diffusion-lab stats sp", ["split="]),
        ("diffusion-lab trian mod", [""]),
    ],
)
def test_bash_completes_commands_groups_options_and_keys(line, candidates, installed, tmp_path):
    (tmp_path / "mine" / "sampler").mkdir(parents=True)
    (tmp_path / "mine" / "sampler" / "ddmine.yaml").touch()
    done = run("bash", "-c", TAB, "bash", line, home=installed, cwd=tmp_path)
    assert done.stdout.split("\n")[:-1] == candidates, done.stderr


def python(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    found = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=found, capture_output=True, text=True, timeout=100)


BLOCKED = """
import runpy, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None  # as on Windows
del signal.SIGHUP
"""


def test_without_locks_a_checkpoint_is_loaded_and_training_refused_in_one_line(tmp_path):
    code = f"{BLOCKED}\nimport diffusion_lab\nload = diffusion_lab.load\ntry:\n    load('nowhere')\n"
    code += "except ValueError as error:\n    print(error)"
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0 and "ckpt_path=nowhere does not exist" in done.stdout, done.stderr
    for name in ("train", "sample"):
        run = f"{BLOCKED}\nsys.argv = ['x']; runpy.run_path({str(ROOT / name) + '.py'!r}, run_name='__main__')"
        done = python("-c", run, cwd=tmp_path)
        assert done.returncode == 2 and "Linux and macOS only" in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
