"""MLflow and Trackio hold what was logged, in their real local stores, and a resumed run is the same run."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import wandb_offline
import yaml
from test_logger_tensorboard import pictures

from diffusion_lab.callback.media import log_pictures
from diffusion_lab.errors import ConfigError
from diffusion_lab.logger.loggers import build_loggers, finish_loggers, reopen
from diffusion_lab.logger.mlflow import MLflowLogger
from diffusion_lab.logger.optional import BestEffort, read_record
from diffusion_lab.logger.trackio import TrackioLogger

clean = wandb_offline.clean
os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp())  # which Trackio reads once, when it is imported
CONFIG = {"model": {"shape": [1, 8], "width": 8}, "choices": {"model": "ddpm", "data": "digits"}, "seed": 0}


class MLflow:
    """What MLflow's store holds of a directory's run."""

    kind, node = MLflowLogger, {"mlflow": {"enabled": True}}

    def __init__(self, run_dir: Path) -> None:
        from mlflow.tracking import MlflowClient

        record = read_record(run_dir / "mlflow_run.json")
        self.client, self.id = MlflowClient(record["tracking_uri"]), record["run_id"]
        self.run = self.client.get_run(self.id)
        self.name, self.config = self.run.info.run_name, self.run.data.params

    def scalars(self, name: str) -> list[tuple[int, float]]:
        return [(one.step, one.value) for one in self.client.get_metric_history(self.id, name)]

    def pictures(self) -> list[str]:
        images = [one.path for one in self.client.list_artifacts(self.id, "images")]
        films = [one.path for one in self.client.list_artifacts(self.id, "film/step_00000020")]
        return [path.rpartition(".")[2] for path in (*images, *films) if "compressed" not in path]

    def runs(self) -> int:
        return len(self.client.search_runs([self.run.info.experiment_id]))


class Trackio:
    """What Trackio's store holds of a directory's run."""

    kind, node = TrackioLogger, {"trackio": {"enabled": True}}

    def __init__(self, run_dir: Path) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        record = read_record(run_dir / "trackio_run.json")
        self.name, self.store, self.project = record["name"], SQLiteStorage, record["project"]
        self.logs = SQLiteStorage.get_logs(self.project, self.name)
        self.config = {key: str(value) for key, value in SQLiteStorage.get_run_config(self.project, self.name).items()}

    def scalars(self, name: str) -> list[tuple[int, float]]:
        return [(log["step"], log[name]) for log in self.logs if name in log]

    def pictures(self) -> list[str]:
        values = [log[name] for log in self.logs for name in ("samples", "film") if name in log]
        return [value["file_path"].rpartition(".")[2] for value in values]

    def runs(self) -> int:
        return self.store.get_runs(self.project).count(self.name)


@pytest.fixture(params=[MLflow, Trackio])
def store(request, clean):
    pytest.importorskip(request.param.__name__.lower())
    return request.param


def test_metrics_pictures_films_and_configuration_are_kept_and_a_resumed_run_is_the_same(store, clean, tmp_path):
    """Steps 10, 20 and 30, then 20 to 40 from the checkpoint of step 10; then results of samples."""
    config = {**CONFIG, "paths": {"log_dir": str(tmp_path / "logs")}}
    run_dir = tmp_path / "run"
    for first, last, step in ((10, 30, 0), (20, 40, 10)):
        loggers = build_loggers(store.node, run_dir, {**config, "seed": step}, step)
        assert isinstance(loggers[-1], store.kind)
        for now in range(first, last + 1, 10):
            for logger in loggers:
                logger.log_metrics({"train/loss": torch.tensor(now + 0.5), "eval/fd": now}, now)
        if not step:
            log_pictures(loggers, pictures(tmp_path), step=20)
        finish_loggers(loggers)
        name = store(run_dir).name
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    later = reopen(run_dir, store.node)
    for logger in later:
        logger.log_metrics({"sample/fd": 12.5}, 30)
    finish_loggers(later)
    found = store(run_dir)
    assert sorted(found.scalars("train/loss")) == [(10, 10.5), (20, 20.5), (30, 30.5), (40, 40.5)]
    assert found.scalars("sample/fd") == [(30, 12.5)] and sorted(found.pictures()) == ["gif", "png"]
    assert found.name == name and name.startswith("ddpm digits") and found.runs() == 1
    assert found.config["model.width" if store is MLflow else "model"] in ("8", str(CONFIG["model"]))
    assert found.config["seed"] == "0"
    # Another directory is another run.
    finish_loggers(build_loggers(store.node, tmp_path / "other", config))
    assert store(run_dir).scalars("train/loss") == found.scalars("train/loss")


def test_a_store_that_fails_is_left_out_and_training_continues(store, clean, tmp_path, capsys):
    logger = build_loggers(store.node, tmp_path, CONFIG)[-1]

    def fail(*_, **__):
        raise RuntimeError("the disk is full\nof it")

    clean.setattr(
        logger.run if store is Trackio else logger.experiment, "log" if store is Trackio else "log_batch", fail
    )
    for step in (1, 2):
        logger.log_metrics({"loss": 1.0}, step)
    finish_loggers([logger])
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert said == [f"{store.__name__} failed and is left out from here on (the disk is full); training continues"]


def test_a_damaged_record_is_left_out(tmp_path, capsys):
    for content in ("", "{", "[1]", "3"):
        (tmp_path / "mlflow_run.json").write_text(content)
        assert read_record(tmp_path / "mlflow_run.json") == {}
    assert capsys.readouterr().out.count("mlflow_run.json is damaged and is left out\n") == 4


def test_the_command_that_shows_a_run_works_where_it_is_pasted(store, clean, tmp_path, capsys):
    config = {**CONFIG, "paths": {"log_dir": str(tmp_path / "my (own) logs")}}
    finish_loggers(build_loggers(store.node, tmp_path, config))
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(store.__name__.lower()))
    words = shlex.split(command)
    record = read_record(tmp_path / f"{words[0]}_run.json")
    assert len(words) == 5 and words[-1] == record["tracking_uri" if store is MLflow else "project"]


def test_a_store_that_cannot_be_opened_is_refused(clean, tmp_path):
    pytest.importorskip("mlflow")
    node = {"mlflow": {"enabled": True, "tracking_uri": wandb_offline.REFUSED}}
    with pytest.raises(ConfigError, match=r"logger\.mlflow: http.* cannot be opened: "):
        build_loggers(node, tmp_path, {})


@pytest.mark.parametrize("package", ["mlflow", "trackio"])
def test_a_missing_package_is_told_before_anything_is_opened(package, clean, tmp_path):
    find = importlib.util.find_spec
    clean.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    clean.delitem(sys.modules, package, raising=False)
    with pytest.raises(ConfigError, match=rf'needs the package {package}: pip install "diffusion_lab\[{package}\]"'):
        build_loggers({package: {"enabled": True}}, tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_a_logger_takes_values_of_any_type_that_its_library_takes():
    class Library:
        def log_metrics(self, values, step):
            self.received = values, step

    class Logger(BestEffort, Library):
        pass

    logger, histogram = Logger(sent={(1, "loss")}), object()
    logger.log_metrics({"loss": 0.5, "weights": histogram}, 1)
    assert logger.received == ({"weights": histogram}, 1)
