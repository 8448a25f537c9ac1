"""The metric log is one file, continued exactly."""

from __future__ import annotations

import csv
import resource
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from diffusion_lab.logger.csv import CSVLogger


def read(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_is_one_row_per_step_with_the_union_of_columns(tmp_path):
    log = CSVLogger(tmp_path)
    log.log_metrics({"loss": torch.tensor(0.5), "epoch": 0}, step=10)
    log.log_metrics({"loss": 0.25, "none": None}, step=20)
    log.log_metrics({"val": 1 / 3}, step=20)
    log.log_metrics({"loss": 0.75}, step=10)
    log.finalize("success")
    assert (tmp_path / "metrics.csv").read_text() == (f"step,loss,epoch,val\n10,0.75,0,\n20,0.25,,{1 / 3!r}\n")


def test_csv_is_the_same_however_often_it_is_flushed(tmp_path):
    """Appending, rewriting for a new column and merging into a flushed row give what one write gives."""
    calls = [
        ({"a": 1.5}, 1),
        ({"a": 2.5}, 3),
        ({"b": 3.5}, 2),
        ({"b": 4.5}, 1),
        ({"a": 5.5, "c": 0}, 4),
        ({"a": 6.5}, 5),
    ]
    for folder, every in (("once", False), ("often", True)):
        log = CSVLogger(tmp_path / folder)
        for metrics, step in calls:
            log.log_metrics(metrics, step)
            if every:
                log.save()
        log.save()
    assert (tmp_path / "often" / "metrics.csv").read_text() == (tmp_path / "once" / "metrics.csv").read_text()
    assert read(tmp_path / "once") == [
        {"step": "1", "a": "1.5", "b": "4.5", "c": ""},
        {"step": "2", "a": "", "b": "3.5", "c": ""},
        {"step": "3", "a": "2.5", "b": "", "c": ""},
        {"step": "4", "a": "5.5", "b": "", "c": "0"},
        {"step": "5", "a": "6.5", "b": "", "c": ""},
    ]
    assert [p.name for p in (tmp_path / "often").iterdir()] == ["metrics.csv"]


def test_csv_waits_in_memory_for_flush_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = CSVLogger(tmp_path, flush_seconds=5.0)
    log.log_metrics({"loss": 1.0}, step=1)
    now[0] = 104.0
    log.log_metrics({"loss": 1.0}, step=2)
    assert not (tmp_path / "metrics.csv").exists()
    now[0] = 106.0
    log.log_metrics({"loss": 1.0}, step=3)
    assert [row["step"] for row in read(tmp_path)] == ["1", "2", "3"]
    now[0] = 107.0
    log.log_metrics({"loss": 1.0}, step=4)
    assert len(read(tmp_path)) == 3


@pytest.mark.parametrize("torn", ["", "7", "7,0.12", "7,0.1234\n8,0.", "5,0.9"])
def test_csv_resumed_after_a_kill_equals_an_unbroken_one(tmp_path, torn):
    """Steps 1..10 straight, against 1..7 (the last line cut short), resumed from step 5."""
    for folder, ranges in (("straight", [range(1, 11)]), ("broken", [range(1, 8), range(6, 11)])):
        for part in ranges:
            log = CSVLogger(tmp_path / folder)
            log.truncate(part[0] - 1)
            for step in part:
                log.log_metrics({"loss": 1 / step}, step)
                if step % 3 == 0:
                    log.log_metrics({"val": 2 / step}, step)
                log.save()
            if part[-1] == 7:
                path = tmp_path / folder / "metrics.csv"
                path.write_text(path.read_text() + torn)
    assert (tmp_path / "broken" / "metrics.csv").read_text() == (tmp_path / "straight" / "metrics.csv").read_text()
    assert [row["step"] for row in read(tmp_path / "broken")] == [str(s) for s in range(1, 11)]


def test_csv_truncate_drops_columns_and_waiting_rows_of_the_future_only(tmp_path):
    log = CSVLogger(tmp_path)
    log.log_metrics({"loss": 1.0}, 1)
    log.log_metrics({"val": 2.0}, 3)
    log.save()
    log.log_metrics({"loss": 3.0}, 2)
    log.log_metrics({"loss": 4.0}, 4)
    assert log.truncate(2) == {(3, "val")}
    log.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,1.0\n2,3.0\n"
    log.log_metrics({"loss": 9.0}, 2)
    log.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,1.0\n2,9.0\n"
    assert log.truncate(5) == set()
    assert log.truncate(-1) == {(1, "loss"), (2, "loss")}
    assert read(tmp_path) == []


def test_csv_gives_a_row_back(tmp_path):
    log = CSVLogger(tmp_path)
    log.log_metrics({"loss": 0.125, "val": 3}, 4)
    log.log_metrics({"loss": 0.5}, 5)
    assert log.row(4) == {"loss": 0.125, "val": 3.0} and log.row(5) == {"loss": 0.5} and log.row(6) == {}


def test_csv_of_another_program_is_not_touched(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    log = CSVLogger(tmp_path)
    log.log_metrics({"loss": 1.0}, 1)
    with pytest.raises(ValueError, match=r"metrics\.csv is not a metric log: it has no column 'step'"):
        log.save()
    assert (tmp_path / "metrics.csv").read_text() == "a,b\n1,2\n"


def test_csv_names_the_file_when_it_cannot_be_written_and_recovers(tmp_path, capsys):
    """A real partial write, by the file-size limit: the half line is repaired by the next save."""
    log = CSVLogger(tmp_path)
    log.log_metrics({"loss": 1.5}, 1)
    log.save()
    log.log_metrics({"loss": 2.5}, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 3, hard))
    try:
        log.save()
        log.log_metrics({"loss": 3.5}, 3)
        log.finalize("failed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{log.path} cannot be written: File too large") and "training continues" in first
    assert last == f"2 rows of {log.path} are lost"
    assert log.path.read_text() == "step,loss\n1,1.5\n2,2" and [log.path] == list(tmp_path.iterdir())
    log.save()
    assert log.path.read_text() == "step,loss\n1,1.5\n2,2.5\n3,3.5\n"


def test_csv_is_written_by_rank_0_only(tmp_path, monkeypatch):
    log = CSVLogger(tmp_path)
    log.log_metrics({"loss": 1.5}, 1)
    log.save()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log.log_metrics({"loss": 2.5}, 2)
    log.finalize("success")
    log.truncate(0)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    log.save()
    assert log.path.read_text() == "step,loss\n1,1.5\n"


class Line(pl.LightningModule):
    """loss = |w x|^2 on fixed data, so that a resumed run can repeat an unbroken one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = (self.w * batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val/loss", (self.w * batch[0]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, steps: int, resume: Path | None = None) -> None:
    log = CSVLogger(folder)
    if resume is not None:
        log.truncate(torch.load(resume, weights_only=True)["global_step"] - 1)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.linspace(1, 2, 4)[:, None]))
    keep = pl.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=4)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=log, callbacks=[keep], log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Line(), data, data, ckpt_path=resume, weights_only=True)


@pytest.mark.filterwarnings("ignore")
def test_csv_of_a_resumed_lightning_run_equals_an_unbroken_one(tmp_path):
    fit(tmp_path / "straight", 12)
    fit(tmp_path / "broken", 10)
    fit(tmp_path / "broken", 12, resume=tmp_path / "broken" / "step=8.ckpt")
    straight, broken = read(tmp_path / "straight"), read(tmp_path / "broken")
    assert broken == straight
    assert [int(row["step"]) for row in straight] == list(range(12))
    losses = [float(row["train/loss"]) for row in straight]
    w, expected = 1.0, []
    for x in [1, 4 / 3, 5 / 3, 2] * 3:
        expected.append((w * x) ** 2)
        w -= 0.1 * 2 * w * x**2
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected))
