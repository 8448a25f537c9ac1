"""Runs of one process stay apart; W&B goes offline, or is left out, instead of asking, waiting or ending a training."""

from __future__ import annotations

import csv
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb_offline
from omegaconf import OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from wandb_offline import REFUSED, offline_runs

from diffusion_lab.config.instantiate import resolve
from diffusion_lab.config.schema import mismatch, parameters
from diffusion_lab.errors import ConfigError
from diffusion_lab.logger import loggers as launch_logger
from diffusion_lab.logger import wandb as wandb_logger
from diffusion_lab.logger.csv import CSVLogger
from diffusion_lab.logger.loggers import build_loggers, finish_loggers, named
from diffusion_lab.logger.wandb import WandbLogger, WandbOptions
from diffusion_lab.storage.revision import revision

clean, keyed = wandb_offline.clean, wandb_offline.keyed
CONF = Path(__file__).parents[1] / "conf" / "logger"


def read(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def services() -> list[int]:
    """wandb's processes that belong to this test run."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if "wandb-core" in line and f"--pid {os.getpid()}" in line]


def test_two_offline_runs_of_one_process_are_two_and_leave_nothing_behind(keyed, tmp_path, capsys):
    before, ids = dict(os.environ), []
    for folder in (tmp_path / "first", tmp_path / "second one"):
        start = time.monotonic()
        loggers = build_loggers({"wandb": {}}, folder, {"model": {"width": 8}})
        assert time.monotonic() - start < 10
        assert [type(x) for x in loggers] == [CSVLogger, WandbLogger]
        assert loggers[1].experiment.settings.mode == "offline"
        for log in loggers:
            log.log_metrics({"loss": 0.5}, step=3)
        finish_loggers(loggers)
        ids.append((folder / "wandb_run_id.txt").read_text().strip())
        (run,) = offline_runs(folder)
        assert run.name.endswith(ids[-1]) and read(folder) == [{"step": "3", "loss": "0.5"}]
        shown = wandb_offline.config(run)
        assert shown.pop("_wandb") is not None
        assert shown == {"model": {"width": 8}, "run_dir": str(folder), "revision": revision()}
        assert wandb_offline.history(run) == [{"_step": 0, "loss": 0.5, "trainer/global_step": 3}]
    assert ids[0] != ids[1]
    assert dict(os.environ) == before
    assert services() == []
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[1].startswith(f"W&B is offline ({REFUSED} cannot be reached: ")
    assert said[1].endswith(f"wandb sync '{tmp_path}/second one/wandb'/offline-run-*-{ids[1]}")


def test_an_id_asked_for_is_that_of_one_run_of_a_sweep(keyed, tmp_path):
    keyed.setenv("WANDB_RUN_ID", "fromenv")
    found = []
    for job, node in ((0, {}), (1, {}), (2, {"id": "asked"}), (3, {"id": "asked"})):
        finish_loggers(build_loggers({"wandb": node}, tmp_path / str(job), {}))
        found.append((tmp_path / str(job) / "wandb_run_id.txt").read_text().strip())
    assert found[0] == "fromenv" and found[2] == "asked"
    assert len(set(found)) == 4 and os.environ["WANDB_RUN_ID"] == "fromenv"


def test_a_run_that_cannot_be_opened_leaves_nothing_to_the_next(keyed, tmp_path, capsys):
    """W&B's run is open when the disk refuses the id: the next job's run must be its own."""
    replace, before = Path.replace, dict(os.environ)

    def refusing(source, target):
        if Path(target).name == "wandb_run_id.txt":
            raise OSError(28, "No space left on device")
        return replace(source, target)

    keyed.setattr(Path, "replace", refusing)
    with pytest.raises(OSError, match="No space left"):
        build_loggers({"wandb": {"id": "doomed"}}, tmp_path / "bad", {"bad": 1})
    assert services() == []
    keyed.setattr(Path, "replace", replace)
    failed = build_loggers({"wandb": {}}, tmp_path / "failed", {})
    finish_loggers(failed, failed=True)
    loggers = build_loggers({"wandb": {}}, tmp_path / "good", {"good": 1})
    loggers[1].log_metrics({"loss": 1.5}, step=1)
    finish_loggers(loggers)
    (good,) = offline_runs(tmp_path / "good")
    assert "bad" not in wandb_offline.config(good)
    assert wandb_offline.history(good) == [{"_step": 0, "loss": 1.5, "trainer/global_step": 1}]
    assert dict(os.environ) == before and services() == []


def test_training_outlives_wandbs_service(keyed, tmp_path, capsys):
    """The service is killed, as by the memory watcher: one line, the other logs go on, and so does the next run."""
    loggers = build_loggers({"wandb": {"log_model": True}}, tmp_path / "first", {})
    for pid in services():
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while services() and time.monotonic() < deadline:
        time.sleep(0.05)
    for step in (1, 2, 3):
        for log in loggers:
            log.log_metrics({"loss": 0.5}, step)
    finish_loggers(loggers)
    said = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert len(said) == 1 and said[0].startswith("W&B failed and is left out from here on (")
    assert [row["step"] for row in read(tmp_path / "first")] == ["1", "2", "3"]
    second = build_loggers({"wandb": {}}, tmp_path / "second", {})
    second[1].log_metrics({"loss": 2.5}, step=1)
    finish_loggers(second)
    assert wandb_offline.history(*offline_runs(tmp_path / "second"))[0]["loss"] == 2.5


def test_one_logger_that_cannot_be_ended_does_not_keep_the_others_open(keyed, tmp_path):
    loggers = build_loggers({"wandb": {}}, tmp_path, {})
    loggers[0].log_metrics({"loss": 0.5}, step=1)

    def full(*_, **__):
        raise RuntimeError("cannot be ended")

    keyed.setattr(loggers[0], "_text", full)
    with pytest.raises(RuntimeError, match="cannot be ended"):
        finish_loggers(loggers)
    assert services() == []


def test_lightning_logs_into_an_offline_run(keyed, tmp_path):
    """The hooks that Lightning calls work on our run, and a failed run is told to W&B as failed."""
    loggers = build_loggers({"wandb": {"enabled": True, "id": "given", "tags": ["a"]}}, tmp_path, {})
    loggers[1].log_hyperparams({"lr": 0.1})
    loggers[1].log_metrics({"loss": 0.5}, step=7)
    run = loggers[1].experiment
    assert (run.id, run.tags, run.config["lr"]) == ("given", ("a",), 0.1)
    assert (run.summary["loss"], run.summary["trainer/global_step"]) == (0.5, 7)
    finish_loggers(loggers, failed=True)
    assert [r.exit.exit_code for r in wandb_offline.records(*offline_runs(tmp_path)) if r.HasField("exit")] == [1]


def test_failing_to_open_a_run_online_goes_offline(keyed, tmp_path, capsys):
    import wandb

    init, modes = wandb.init, []

    def refusing(**arguments):
        modes.append(arguments["mode"])
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("the key is not known here\nlong story")
        return init(**arguments)

    def teardown(exit_code=None, teardown=wandb.teardown):
        modes.append("teardown")
        teardown(exit_code)

    keyed.setattr(wandb_logger, "wandb_mode", lambda mode: ("online", ""))
    keyed.setattr(wandb, "init", refusing)
    keyed.setattr(wandb, "teardown", teardown)
    finish_loggers(build_loggers({"wandb": {}}, tmp_path, {}))
    assert modes == ["online", "teardown", "offline", "teardown"] and len(offline_runs(tmp_path)) == 1
    assert "W&B is offline (the key is not known here); upload" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="W&B cannot go online: the key is not known here"):
        build_loggers({"wandb": {"on_no_network": "error"}}, tmp_path / "strict", {})
    assert modes[4:6] == ["online", "teardown"] and not (tmp_path / "strict" / "wandb_run_id.txt").exists()


def test_without_a_key_auto_means_csv_only_and_true_means_offline(clean, tmp_path):
    assert [type(x) for x in build_loggers({"wandb": {}}, tmp_path, {})] == [CSVLogger]
    assert [type(x) for x in build_loggers({}, tmp_path, {})] == [CSVLogger]
    assert not (tmp_path / "wandb").exists()
    finish_loggers(build_loggers({"wandb": {"enabled": True}}, tmp_path, {}))
    assert len(offline_runs(tmp_path)) == 1


def test_packages_are_imported_only_when_they_are_used(clean, tmp_path):
    for name in ("wandb", "tensorboard", "torch.utils.tensorboard", "mlflow", "trackio"):
        clean.setitem(sys.modules, name, None)  # an import raises
    for module in (wandb_logger, launch_logger):
        names = runpy.run_path(module.__file__, run_name=module.__name__)
    names["finish_loggers"](names["build_loggers"]({"wandb": {"enabled": "auto"}}, tmp_path, {}))
    names["finish_loggers"](names["build_loggers"]({"wandb": {"enabled": False}}, tmp_path, {}))


def test_disabled_and_false_mean_csv_only(keyed, tmp_path):
    keyed.setenv("WANDB_MODE", "disabled")
    assert len(build_loggers({"wandb": {"enabled": True}}, tmp_path, {})) == 1
    keyed.delenv("WANDB_MODE")
    assert len(build_loggers({"wandb": {"enabled": False}}, tmp_path, {})) == 1


def test_other_ranks_open_nothing(keyed, tmp_path):
    (tmp_path / "wandb_run_id.txt").write_text("given\n")
    keyed.setattr(rank_zero_only, "rank", 1)
    node = {"wandb": {}, "tensorboard": {"enabled": True}}
    assert build_loggers(node, tmp_path, {}) == [] == launch_logger.reopen(tmp_path, node)
    finish_loggers([])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "wandb_run_id.txt"]


def test_a_missing_wandb_is_told(keyed, tmp_path, capsys):
    """A folder ./wandb of earlier runs is importable as a namespace, but is not the library."""
    (Path.cwd() / "wandb").mkdir()
    keyed.setattr(sys, "path", [str(Path.cwd())])
    keyed.delitem(sys.modules, "wandb", raising=False)
    assert len(build_loggers({"wandb": {}}, tmp_path, {})) == 1
    assert "pip install" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="wandb is not installed: pip install"):
        build_loggers({"wandb": {"enabled": True}}, tmp_path, {})


@pytest.mark.parametrize("group", ["wandb", "tensorboard", "mlflow", "trackio"])
def test_yaml_has_every_option_with_its_default(clean, tmp_path, group):
    node = OmegaConf.to_container(OmegaConf.load(CONF / "default.yaml"))[group]
    target = node.pop("_target_")
    known, options = parameters(target), resolve(target)()
    assert list(node) == list(known)
    assert all(mismatch(known[key], value) is None for key, value in node.items())
    assert {key: list(v) if isinstance(v := getattr(options, key), tuple) else v for key in node} == node
    assert mismatch(known["enabled"], "yes") and not mismatch(known["enabled"], True)
    with pytest.raises(ConfigError, match=rf"logger\.{group}: .*projct"):
        build_loggers({group: {"projct": "x"}}, tmp_path, {})


@pytest.mark.parametrize(
    ("name", "enabled"),
    [
        ("default", {"wandb": "auto"}),
        ("csv", {}),
        *((name, {name: True}) for name in ("wandb", "tensorboard", "mlflow", "trackio")),
    ],
)
def test_yaml_choices(name, enabled):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        node = compose(overrides=[f"+logger={name}"]).logger
    assert {key: options.enabled for key, options in node.items() if options.enabled} == enabled
    assert node.wandb.project == "diffusion_lab"


def test_a_run_is_named_by_what_was_chosen():
    config = {
        "choices": {"model": "ddpm", "data": "digits", "sampler": "ancestral"},
        "overrides": [
            "model=ddpm",
            "optimizer.lr=1e-3",
            "seed=2",
            "logger=wandb",
            "paths.log_dir=/x",
            "+a=" + 90 * "b",
        ],
    }
    found = named(WandbOptions(), config)
    assert found.name.startswith("ddpm digits optimizer.lr=1e-3 seed=2 +a=bbb") and len(found.name) == 120
    assert list(found.tags) == ["ddpm", "digits", "optimizer.lr=1e-3", "seed=2"]
    given = named(WandbOptions(name="mine", tags=("a",)), config)
    assert (given.name, given.tags) == ("mine", ("a",))
    assert named(WandbOptions(), {}) == WandbOptions(tags=[])


def test_only_a_new_run_is_named(keyed, tmp_path):
    opened = []
    keyed.setattr(launch_logger, "open_run", lambda options, *_: opened.append(options) or SimpleNamespace(project="p"))
    keyed.setattr(launch_logger, "WandbLogger", lambda *_: None)
    build_loggers({"wandb": {}}, tmp_path, {"choices": {"model": "ddpm"}})
    (tmp_path / "wandb_run_id.txt").write_text("there")
    build_loggers({"wandb": {}}, tmp_path, {"choices": {"model": "ddpm"}})
    assert [(options.name, list(options.tags)) for options in opened] == [("ddpm", ["ddpm"]), (None, [])]
