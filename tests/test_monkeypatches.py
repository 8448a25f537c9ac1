"""What this package replaces in Hydra and Lightning: with a version that lacks it, one clear error."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra._internal import utils
from hydra.core.hydra_config import HydraConfig
from lightning_fabric.strategies import DDPStrategy
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop

from diffusion_lab import monkeypatches
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch import main

PACKAGE = Path(monkeypatches.__file__).parent


class ChangedStrategy(DDPStrategy):
    _timeout = property()  # as if Lightning no longer had it


class ChangedLoop(_TrainingEpochLoop):
    max_steps = property()

    def __init__(self) -> None:
        pass


ChangedStrategy.__module__ = ChangedLoop.__module__ = "pytorch_lightning.of_tomorrow"


def test_a_changed_hydra_is_one_clear_error(monkeypatch, capsys):
    monkeypatch.delattr(utils, "run_and_report")
    monkeypatch.setattr("sys.argv", ["train.py", "data=toy2d"])
    with pytest.raises(SystemExit) as stop:
        main("train")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    assert "hydra-core 1." in message and "has no hydra._internal.utils.run_and_report" in message


def test_a_hydra_that_no_longer_calls_what_is_replaced_is_one_clear_error():
    before = utils.run_and_report
    with pytest.raises(ConfigError, match="does not call run_and_report"), monkeypatches.failures_of_hydra(print):
        pass
    assert utils.run_and_report is before


def test_a_changed_configuration_of_hydra_is_one_clear_error(monkeypatch):
    monkeypatch.delattr(HydraConfig.instance(), "cfg")
    with pytest.raises(ConfigError, match=r"hydra-core 1\S+ has no HydraConfig.cfg"), monkeypatches.hydra_config({}):
        pass


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: monkeypatches.set_timeout(object.__new__(ChangedStrategy), 7), "ChangedStrategy._timeout"),
        (
            lambda: monkeypatches.set_last_step(SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=ChangedLoop())), 7),
            "ChangedLoop.max_steps",
        ),
    ],
)
def test_a_changed_lightning_is_one_clear_error(change, name):
    with pytest.raises(ConfigError, match=rf"pytorch-lightning 2\S+ has no {name}, which diffusion_lab replaces"):
        change()


def test_no_other_file_replaces_attributes_of_hydra_or_lightning():
    """Of their modules, by assignment or setattr: whatever is imported from them is left as it is."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        theirs = {
            (alias.asname or alias.name).partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
            if (getattr(node, "module", None) or alias.name).startswith(("hydra", "pytorch_lightning", "lightning"))
        }
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            while targets and isinstance(targets[0], ast.Tuple):
                targets = targets[0].elts
            for target in targets:
                root = target
                while isinstance(root, ast.Attribute | ast.Call):
                    root = root.value if isinstance(root, ast.Attribute) else root.func
                if root is not target and isinstance(root, ast.Name) and root.id in theirs:
                    found.append(file.relative_to(PACKAGE).as_posix())
    assert {*found} <= {"monkeypatches.py"}
