"""What a start imports: nothing heavy for help and refusals, and of torchmetrics only what Lightning needs."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_lab.config import compose, imports
from diffusion_lab.data import digits
from diffusion_lab.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]

HEAVY = {
    *("torch", "numpy", "pytorch_lightning", "lightning_fabric", "torchmetrics", "torchvision", "torchdiffeq", "scipy"),
    *("sklearn", "pandas", "matplotlib", "PIL", "wandb", "tensorboard", "torch_fidelity", "safetensors", "rich"),
    *("importlib.metadata", "diffusion_lab.comparison", "diffusion_lab.page"),
}

PROGRAM = """
import atexit, json, runpy, sys
atexit.register(lambda: print("modules", json.dumps(list(sys.modules)), flush=True))
sys.argv = json.loads(sys.argv[1])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def python(code: str, *words: str, path: Path = ROOT, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "command, status, said",
    [
        ("train.py --help", 0, "python train.py -m schedule=linear,cosine"),
        ("sample.py --help", 0, "python sample.py ckpt_path=last"),
        ("train.py --cfg job data=toy2d", 0, "_target_: diffusion_lab.data.Toy2D\n"),
        ("train.py --cfg job --resolve -p data", 0, "# @package data\n_target_: diffusion_lab.data.Digits\n"),
        ("sample.py --cfg job", 0, "ckpt_path: ???"),
        ("sample.py -c job -p metric --resolve", 0, "# @package metric\n"),
        ("train.py --info defaults-tree", 0, "experiment: null"),
        ("sample.py --info defaults-tree", 0, "sampler: trained"),
        ("train.py data=digitz", 2, "did you mean digits?"),
        ("train.py model.levels=abc", 2, "must be int"),
        ("train.py --cfg job modle=ddpm", 2, "did you mean model?"),
        ("train.py -m seed=1,2 --cfg job", 2, "leave out -m"),
    ],
)
def test_what_only_informs_or_refuses_imports_nothing_heavy(command, status, said, tmp_path):
    done = python(PROGRAM, json.dumps([str(ROOT / command.split()[0]), *command.split()[1:]]), cwd=tmp_path)
    shown, _, modules = done.stdout.rpartition("modules ")
    assert done.returncode == status, done.stderr
    assert said in (done.stderr if status else shown)
    assert not HEAVY & set(json.loads(modules))
    assert not list(tmp_path.iterdir())


def test_a_shown_configuration_is_checked_for_its_words_only():
    compose.check("sample", [], only_names=True)
    compose.check("train", ["model.levels=abc"], only_names=True)
    with pytest.raises(ConfigError, match="did you mean seed"):
        compose.check("sample", ["sed=1"], only_names=True)


@pytest.mark.parametrize(
    "words, times", [([], 1), (["data=toy2d"], 1), (["data=toy2d", "seed=1"], 2), (["schedule=linear,cosine"], 2)]
)
def test_groups_alone_are_composed_once(monkeypatch, words, times):
    asked, original = [], compose.composed_by_hydra
    monkeypatch.setattr(compose, "composed_by_hydra", lambda task, job: asked.append(job) or original(task, job))
    compose.check("train", words, sweep=True)
    assert len(asked) == times


TRAINING = """
import gc, sys
from diffusion_lab.config.imports import quick_imports
with quick_imports():
    assert not gc.isenabled()
    import diffusion_lab.run.train
    import diffusion_lab.run.sample
assert gc.isenabled()
from diffusion_lab.data import Digits
Digits().load()
unwanted = {"scipy", "torchvision", "torchdiffeq", "sklearn", "pandas", "wandb", "tensorboard", "torch_fidelity"}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
assert "torchmetrics.functional" not in sys.modules
import torchmetrics
from pytorch_lightning.core import module
light, metric = torchmetrics, torchmetrics.Metric
from torchmetrics import Accuracy
from torchmetrics.image import PeakSignalNoiseRatio
import numpy, torchmetrics.functional
assert numpy.Inf == numpy.inf  # which torchmetrics sets
assert sys.modules["torchmetrics"] is light and light.Metric is metric is module.Metric
assert light.MetricCollection is module.MetricCollection and issubclass(PeakSignalNoiseRatio, metric)
assert all(hasattr(light, name) for name in light.__all__) and not hasattr(light, "nonsense")
assert not hasattr(light, "__getattr__")
"""


def test_a_training_imports_torchmetrics_when_it_is_asked_for():
    done = python(TRAINING)
    assert done.returncode == 0, done.stderr
    assert "leak" not in done.stderr


@pytest.fixture
def package(tmp_path):
    """A package of the name torchmetrics, which says when its `__init__` runs."""
    folder = tmp_path / "torchmetrics"
    folder.mkdir()
    files = {
        "__init__.py": "print('whole')\nfrom torchmetrics import image\nfrom torchmetrics.metric import Metric\nrest = 1",
        "utilities.py": "from torchmetrics import _logger",
        "metric.py": "class Metric: pass",
        "collections.py": "from torchmetrics.metric import Metric\nclass MetricCollection(Metric): pass",
        "image.py": "from torchmetrics.metric import Metric",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return tmp_path


ON_DEMAND = """
import sys
from diffusion_lab.config.imports import complete_torchmetrics, torchmetrics_on_demand
complete_torchmetrics()
torchmetrics_on_demand()
print('torchmetrics' in sys.modules)
import torchmetrics
from torchmetrics import Metric, MetricCollection
"""


def test_the_rest_of_torchmetrics_comes_once_with_the_first_other_name(package):
    done = python(ON_DEMAND + "print(torchmetrics.rest, torchmetrics.image.Metric is Metric)", path=package)
    assert done.stdout.split() == ["True", "whole", "1", "True"], done.stderr
    done = python(ON_DEMAND + "print(hasattr(torchmetrics, 'nonsense'), torchmetrics.Metric is Metric)", path=package)
    assert done.stdout.split() == ["True", "whole", "False", "True"], done.stderr
    done = python(
        ON_DEMAND + "complete_torchmetrics(); import torchmetrics.image; complete_torchmetrics()", path=package
    )
    assert done.stdout.split() == ["True", "whole"], done.stderr


def test_foreign_classes_are_built_beside_the_whole_of_torchmetrics(package):
    (package / "mine.py").write_text("import torchmetrics.image\nprint('mine')\nclass Net: pass")
    build = "import os; os.environ['DIFFUSION_LAB_PACKAGES'] = 'mine'\n"
    build += "from diffusion_lab.launch import instantiate\ninstantiate({'_target_': 'mine.Net'})"
    done = python(ON_DEMAND + build, path=package)
    assert done.stdout.split() == ["True", "whole", "mine"], done.stderr


@pytest.mark.parametrize("broken", ["utilities.py", "collections.py"])
def test_another_torchmetrics_is_imported_as_always(package, broken):
    (package / "torchmetrics" / broken).write_text("from torchmetrics import rest")
    done = python(
        ON_DEMAND.partition("import torchmetrics\n")[0] + "import torchmetrics as t; print(t.rest)", path=package
    )
    assert done.stdout.split() == ["False", "whole", "1"], done.stderr


def test_garbage_is_collected_again_only_if_it_was_before(monkeypatch):
    done = []
    monkeypatch.setattr(imports.gc, "freeze", lambda: done.append("freeze"))  # this process lives on
    monkeypatch.setattr(imports.atexit, "register", done.append)
    with pytest.raises(ImportError), imports.quick_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() and done == ["freeze", gc.unfreeze]
    gc.disable()
    try:
        with imports.quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_digits_are_the_same_with_and_without_importing_their_package(monkeypatch):
    direct = digits._table()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    assert (digits._table() == direct).all() and direct.shape == (1797, 65)
    assert digits.Digits().load().train.labels.dtype == torch.int64
