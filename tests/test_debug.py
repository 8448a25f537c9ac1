"""debug=overfit and debug=profile do what they say; the time of a long run is foretold."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import zygote
from hydra import compose, initialize_config_dir

from diffusion_lab.callback import progress
from diffusion_lab.config.compose import CONF, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.run.train import set_up

ROOT = Path(__file__).resolve().parents[1]


def run(tmp_path: Path, *words: str) -> tuple[Path, str]:
    command = ["train.py", "data=toy2d", f"hydra.run.dir={tmp_path}/run", "paths.log_dir=nowhere"]
    done = zygote.run(*command, "logger=csv", *words)
    assert done.returncode == 0, done.stderr
    return tmp_path / "run", done.stdout


def test_overfit_logs_every_step_and_holds_nothing_out(tmp_path):
    folder, _ = run(tmp_path, "debug=overfit", "trainer.max_steps=40", "sampler_steps=3")
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 41))
    assert all(row["train/loss"] for row in rows) and "val/loss" not in rows[0]
    assert (folder / "samples.png").is_file() and not (folder / "results.json").exists()


class Seen(pl.Callback):
    def __init__(self):
        self.batches, self.validated = [], 0

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        self.batches.append(batch[0].clone())

    def on_validation_batch_start(self, *_):
        self.validated += 1


@pytest.mark.parametrize("debug", ["overfit", "profile"])
def test_overfit_sees_one_batch_and_no_other_debugging_does(debug, tmp_path):
    words = [f"debug={debug}", "data=patches", "network=unet_small", "data.train_size=64", "data.held_out_size=8"]
    words += ["data.batch_size=8", "trainer.max_steps=4", "trainer.accelerator=cpu", f"paths.run_dir={tmp_path}"]
    words += ["network.channels=8", "network.multipliers=[1]", "network.groups=4", "network.attention=[]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = plain(compose("train", words))
    data, model = instantiate(settings["data"]), instantiate(settings["model"])
    seen = Seen()
    trainer = instantiate(
        {k: v for k, v in settings["trainer"].items() if k not in ("timeout", "max_restarts", "rdzv_endpoint")}
        | {"_partial_": True}
    )(callbacks=[seen], logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(model, datamodule=data)
    assert len(seen.batches) == 4 and seen.validated == 0
    same = [torch.equal(seen.batches[0], batch) for batch in seen.batches]
    assert all(same) if debug == "overfit" else sum(same) == 1


def test_profile_says_where_the_time_of_thirty_steps_went(tmp_path):
    folder, said = run(tmp_path, "debug=profile")
    rows = [
        line.split("|")
        for line in (folder / "fit-profile.txt").read_text().splitlines()
        if "DDPM.optimizer_step" in line
    ]
    assert [int(row[3]) for row in rows] == [30]
    assert "fit-profile.txt" in said and not (folder / "results.json").exists()


@pytest.fixture
def trained(monkeypatch):
    """Trains by a clock of its own: `slow` seconds for each of the first ten steps, then `rate` steps a second."""
    noon = time.mktime((2026, 11, 22, 12, 0, 0, 0, 0, -1))

    def train(max_steps, rate, first=0, rank=0, accumulate=1, steps=150, slow=5.0, callbacks=()):
        now = [1000.0]
        clock = SimpleNamespace(perf_counter=lambda: now[0], time=lambda: noon - 1000 - 50 + now[0])
        monkeypatch.setattr(progress, "time", SimpleNamespace(**vars(time) | vars(clock)))
        trainer = SimpleNamespace(
            global_step=first, max_steps=max_steps, is_global_zero=rank == 0, world_size=1, callbacks=callbacks
        )
        callback = progress.Progress()
        callback.on_train_start(trainer, SimpleNamespace(kind="images"))
        for batch in range(steps * accumulate):
            trainer.global_step = first + (batch + 1) // accumulate
            now[0] += (slow if batch < 10 * accumulate else 1 / rate) / accumulate
            callback.on_train_batch_end(trainer, None, {"loss": torch.zeros(())}, (torch.zeros(2), None), batch)
        callback.on_train_end(trainer, None)

    return train


def test_the_time_of_a_long_run_is_foretold_once_from_its_speed(trained, capsys):
    trained(50_010, 10)  # 50 s, then 50,000 steps in 5000 s
    assert capsys.readouterr().out == "about 1 h 24 min for 50,010 steps: 10 steps/s; ends 2026-11-22 13:23\n"
    trained(50_010, 10, accumulate=3)
    assert capsys.readouterr().out == "about 1 h 24 min for 50,010 steps: 10 steps/s; ends 2026-11-22 13:23\n"
    trained(90_010, 0.4, first=40_000)  # 50 s, then 50,000 steps in 125,000 s
    assert capsys.readouterr().out == "about 1 d 10 h for 50,010 more steps: 0.4 steps/s; ends 2026-11-23 22:43\n"


class Elapsed(pl.callbacks.Timer):
    """Half an hour, of which some has gone, by no clock."""

    def __init__(self, gone):
        super().__init__("00:00:30:00")
        self.gone = gone

    def time_elapsed(self, stage="train"):
        return self.gone


def test_a_run_that_its_time_ends_is_foretold_so(trained, capsys):
    trained(50_010, 10, callbacks=[Elapsed(59)])  # 50 s, 90 steps in 9 s, then 1741 s
    said = "about 30 min for 17,510 of 50,010 steps, by trainer.max_time: 10 steps/s; ends 2026-11-22 12:29\n"
    assert capsys.readouterr().out == said
    trained(10_010, 10, callbacks=[Elapsed(59)])
    assert capsys.readouterr().out.startswith("about 17 min for 10,010 steps: 10 steps/s")


def test_nothing_is_foretold_of_short_runs_by_other_ranks_or_without_an_end(trained, capsys):
    trained(2_500, 10)  # 50 s + 249 s
    trained(50_010, 10, rank=1)
    trained(-1, 10, slow=50.0)
    trained(50_010, 10, steps=99)
    assert capsys.readouterr().out == ""
    trained(2_520, 10)  # 50 s + 251 s
    assert capsys.readouterr().out.startswith("about 5 min for 2,520 steps")


@pytest.mark.parametrize(
    "seconds, words",
    [
        (10, "1 min"),
        (3570, "1 h"),
        (3629, "1 h"),
        (3631, "1 h 1 min"),
        (11520, "3 h 12 min"),
        (86400 * 2 + 3700, "2 d 1 h"),
    ],
)
def test_durations_are_told_in_two_units(seconds, words):
    assert progress.duration(seconds) == words


def test_validations_are_counted_in_steps(tmp_path):
    words = [
        "data=toy2d",
        "trainer.accelerator=cpu",
        "trainer.val_check_interval=10",
        "logger=csv",
        f"paths.run_dir={tmp_path}",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = plain(compose("train", [*words, "trainer.accumulate_grad_batches=4"]))
    settings["choices"] = {"sampler": "ancestral"}
    assert set_up(settings, tmp_path)[2].val_check_interval == 40
