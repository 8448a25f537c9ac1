"""The metric log is continued exactly; W&B goes offline instead of asking, waiting or sharing runs."""

from __future__ import annotations

import csv
import http.server
import os
import resource
import runpy
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from diffusion_lab.launch import logger as launch_logger
from diffusion_lab.launch.csv_logger import CSVLogger
from diffusion_lab.launch.instantiate import ConfigError
from diffusion_lab.launch.logger import build_loggers, finish_loggers, has_key, wandb_mode
from diffusion_lab.launch.schema import mismatch, parameters

CONF = Path(__file__).parents[1] / "conf" / "logger"
KEY = "0123456789abcdef" * 2 + "01234567"
REFUSED = "http://127.0.0.1:9"


def read(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---- CSV ---------------------------------------------------------------------------------------------------------


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
    log.truncate(2)
    log.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,1.0\n2,3.0\n"
    log.log_metrics({"loss": 9.0}, 2)
    log.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,1.0\n2,9.0\n"
    log.truncate(-1)
    assert read(tmp_path) == []


def test_csv_of_another_program_is_not_touched(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    log = CSVLogger(tmp_path)
    log.log_metrics({"loss": 1.0}, 1)
    with pytest.raises(ValueError, match=r"metrics\.csv is not a metric log: it has no column 'step'"):
        log.save()
    assert (tmp_path / "metrics.csv").read_text() == "a,b\n1,2\n"


def test_csv_names_the_file_when_it_cannot_be_written_and_recovers(tmp_path):
    """A real partial write, by the file-size limit: the half line is repaired by the next save."""
    log = CSVLogger(tmp_path)
    log.log_metrics({"loss": 1.5}, 1)
    log.save()
    log.log_metrics({"loss": 2.5}, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 3, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*metrics\.csv'"):
            log.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.path.read_text() == "step,loss\n1,1.5\n2,2"
    log.save()
    assert log.path.read_text() == "step,loss\n1,1.5\n2,2.5\n"


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


# ---- W&B ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """No key, no settings, and a W&B server that refuses connections; nothing but loopback is ever contacted."""
    for name in [n for n in os.environ if n.startswith("WANDB")] + ["NETRC", "http_proxy", "HTTP_PROXY"]:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_BASE_URL", REFUSED)
    for name in ("WANDB__DISABLE_STATS", "WANDB__DISABLE_MACHINE_INFO", "WANDB_DISABLE_GIT"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(home)
    yield monkeypatch
    if sys.modules.get("wandb"):
        sys.modules["wandb"].teardown()


@pytest.fixture
def keyed(clean):
    clean.setenv("WANDB_API_KEY", KEY)
    return clean


def services() -> set[str]:
    """wandb's processes that belong to this test run."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
    return {line for line in listed if "wandb-core" in line and f"--pid {os.getpid()}" in line}


def offline_runs(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "wandb").glob("offline-run-*"))


def listener(status: int | None) -> str:
    """URL of a loopback server that answers with a status, or accepts and never says a word."""
    if status is None:
        silent = socket.create_server(("127.0.0.1", 0))
        listener.kept = silent
        return f"http://127.0.0.1:{silent.getsockname()[1]}"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [
        (200, "online", "answers"),
        (404, "online", "answers"),
        (503, "offline", "status 503"),
        (None, "offline", "did not answer within 0.5 s"),
    ],
)
def test_mode_is_online_only_if_the_server_answers(keyed, status, expected, words):
    start = time.monotonic()
    mode, reason = wandb_mode("auto", listener(status), timeout=0.5)
    assert (mode, words in reason) == (expected, True), reason
    assert time.monotonic() - start < 2


def test_mode_is_bounded_where_looking_up_the_name_hangs(keyed):
    keyed.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(5))
    start = time.monotonic()
    assert wandb_mode("online", "https://api.example", timeout=0.3)[0] == "offline"
    assert time.monotonic() - start < 2


def test_mode_goes_through_the_proxy(keyed):
    keyed.setenv("http_proxy", listener(200))
    keyed.setenv("no_proxy", "")
    assert wandb_mode("auto", "http://w-and-b.invalid", timeout=2) == ("online", "the server answers")


def test_mode_follows_what_is_said_in_order(keyed):
    assert wandb_mode("auto") == ("offline", f"{REFUSED} cannot be reached: [Errno 111] Connection refused")
    for said, expected in (("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")):
        keyed.setenv("WANDB_MODE", said)
        assert wandb_mode("auto") == (expected, "as asked for")
    assert "cannot be reached" in wandb_mode("online")[1]
    keyed.delenv("WANDB_MODE")
    (Path.home() / ".config" / "wandb").mkdir(parents=True)
    (Path.home() / ".config" / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    assert wandb_mode("auto") == ("offline", "as asked for")
    keyed.delenv("WANDB_API_KEY")
    mode, reason = wandb_mode("online")
    assert mode == "offline" and "no API key" in reason


def test_key_is_found_where_wandb_keeps_it(clean):
    netrc, settings = Path.home() / ".netrc", Path.home() / ".config" / "wandb" / "settings"
    assert not has_key()
    clean.delenv("WANDB_BASE_URL")
    for machine, expected in (
        ("api.wandb.ai", True),
        ("api.forge.coreweave.com", True),
        ("github.com", False),
        ("127.0.0.1:9", False),
    ):
        netrc.write_text(f"machine {machine}\n  login user\n  password {KEY}\n")
        netrc.chmod(0o600)
        assert has_key() is expected, machine
    clean.setenv("WANDB_BASE_URL", REFUSED)
    assert has_key()
    netrc.write_text("machine machine\n garbage")
    assert not has_key()
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[default]\napi_key = {KEY}\n")
    assert has_key()
    settings.write_text("no section\n")
    assert not has_key()
    clean.setenv("WANDB_API_KEY", KEY)
    assert has_key()


def test_two_offline_runs_of_one_process_are_two_and_leave_nothing_behind(keyed, tmp_path, capsys):
    before, ids = dict(os.environ), []
    for folder in (tmp_path / "first", tmp_path / "second one"):
        start = time.monotonic()
        loggers = build_loggers({"wandb": {}}, folder, {"model": {"width": 8}})
        assert time.monotonic() - start < 5
        assert [type(x) for x in loggers] == [CSVLogger, WandbLogger]
        run = loggers[1].experiment
        assert run.settings.mode == "offline"
        assert dict(run.config) == {"model": {"width": 8}, "run_dir": str(folder)}
        for log in loggers:
            log.log_metrics({"loss": 0.5}, step=3)
        finish_loggers(loggers)
        ids.append((folder / "wandb_run_id.txt").read_text().strip())
        assert len(offline_runs(folder)) == 1 and offline_runs(folder)[0].endswith(ids[-1])
        assert read(folder) == [{"step": "3", "loss": "0.5"}]
    assert ids[0] != ids[1]
    assert dict(os.environ) == before
    assert services() == set()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[1].startswith(f"W&B is offline ({REFUSED} cannot be reached: ")
    assert said[1].endswith(f"wandb sync '{tmp_path}/second one/wandb'/offline-run-*-{ids[1]}")


def test_a_resumed_run_keeps_its_id(keyed, tmp_path):
    finish_loggers(build_loggers({"wandb": {}}, tmp_path, {}))
    time.sleep(1.1)  # wandb names its folders by the second
    finish_loggers(build_loggers({"wandb": {}}, tmp_path, {}))
    run_id = (tmp_path / "wandb_run_id.txt").read_text().strip()
    assert [name.rsplit("-", 1)[1] for name in offline_runs(tmp_path)] == [run_id, run_id]


def test_lightning_logs_into_an_offline_run(keyed, tmp_path):
    """The hooks that Lightning calls work on our run, and a failed run is told to W&B as failed."""
    import wandb

    loggers = build_loggers({"wandb": {"enabled": True, "id": "given", "tags": ["a"]}}, tmp_path, {})
    codes = []
    keyed.setattr(wandb, "finish", lambda exit_code: codes.append(exit_code))
    loggers[1].log_hyperparams({"lr": 0.1})
    loggers[1].log_metrics({"loss": 0.5}, step=7)
    run = loggers[1].experiment
    assert (run.id, run.tags, run.config["lr"]) == ("given", ("a",), 0.1)
    assert (run.summary["loss"], run.summary["trainer/global_step"]) == (0.5, 7)
    finish_loggers(loggers, failed=True)
    assert codes == [1]


def test_failing_to_open_a_run_online_goes_offline(keyed, tmp_path, capsys):
    import wandb

    init, modes = wandb.init, []

    def refusing(**arguments):
        modes.append(arguments["mode"])
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("the key is not known here\nlong story")
        return init(**arguments)

    keyed.setattr(launch_logger, "wandb_mode", lambda mode: ("online", ""))
    keyed.setattr(wandb, "init", refusing)
    keyed.setattr(wandb, "teardown", lambda teardown=wandb.teardown: modes.append("teardown") or teardown())
    finish_loggers(build_loggers({"wandb": {}}, tmp_path, {}))
    assert modes == ["online", "teardown", "offline", "teardown"] and len(offline_runs(tmp_path)) == 1
    assert "W&B is offline (the key is not known here); upload" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="W&B cannot go online: the key is not known here"):
        build_loggers({"wandb": {"on_no_network": "error"}}, tmp_path / "strict", {})
    assert modes[4:] == ["online", "teardown"] and not (tmp_path / "strict" / "wandb_run_id.txt").exists()


def test_without_a_key_auto_means_csv_only_and_true_means_offline(clean, tmp_path):
    assert [type(x) for x in build_loggers({"wandb": {}}, tmp_path, {})] == [CSVLogger]
    assert [type(x) for x in build_loggers({}, tmp_path, {})] == [CSVLogger]
    assert not (tmp_path / "wandb").exists()
    finish_loggers(build_loggers({"wandb": {"enabled": True}}, tmp_path, {}))
    assert len(offline_runs(tmp_path)) == 1


def test_wandb_is_imported_only_when_it_is_used(clean, tmp_path):
    clean.setitem(sys.modules, "wandb", None)  # an import raises
    names = runpy.run_path(launch_logger.__file__, run_name=launch_logger.__name__)
    names["finish_loggers"](names["build_loggers"]({"wandb": {"enabled": "auto"}}, tmp_path, {}))
    names["finish_loggers"](names["build_loggers"]({"wandb": {"enabled": False}}, tmp_path, {}))


def test_disabled_and_false_mean_csv_only(keyed, tmp_path):
    keyed.setenv("WANDB_MODE", "disabled")
    assert len(build_loggers({"wandb": {"enabled": True}}, tmp_path, {})) == 1
    keyed.delenv("WANDB_MODE")
    assert len(build_loggers({"wandb": {"enabled": False}}, tmp_path, {})) == 1


def test_other_ranks_open_nothing(keyed, tmp_path):
    keyed.setattr(rank_zero_only, "rank", 1)
    loggers = build_loggers({"wandb": {}}, tmp_path, {})
    loggers[1].log_metrics({"loss": 0.5}, step=1)
    finish_loggers(loggers)
    assert [type(x) for x in loggers] == [CSVLogger, WandbLogger] and list(tmp_path.glob("wandb*")) == []


def test_a_missing_wandb_is_told(keyed, tmp_path, capsys):
    """A folder ./wandb of earlier runs is importable as a namespace, but is not the library."""
    (Path.cwd() / "wandb").mkdir()
    keyed.setattr(sys, "path", [str(Path.cwd())])
    keyed.delitem(sys.modules, "wandb", raising=False)
    assert len(build_loggers({"wandb": {}}, tmp_path, {})) == 1
    assert "pip install" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="wandb is not installed: pip install"):
        build_loggers({"wandb": {"enabled": True}}, tmp_path, {})


# ---- configuration -----------------------------------------------------------------------------------------------


def test_yaml_has_every_option_with_its_default(clean, tmp_path):
    node = OmegaConf.to_container(OmegaConf.load(CONF / "default.yaml"))["wandb"]
    known = parameters(node.pop("_target_"))
    assert list(node) == list(known)
    assert all(mismatch(known[key], value) is None for key, value in node.items())
    options = launch_logger.WandbOptions()
    assert {key: list(v) if isinstance(v := getattr(options, key), tuple) else v for key in node} == node
    assert mismatch(known["enabled"], "yes") and mismatch(known["mode"], "on") and not mismatch(known["enabled"], True)
    with pytest.raises(ConfigError, match=r"logger\.wandb: .*projct"):
        build_loggers({"wandb": {"projct": "x"}}, tmp_path, {})


@pytest.mark.parametrize(("name", "enabled"), [("default", "auto"), ("csv", False), ("wandb", True)])
def test_yaml_choices(name, enabled):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        config = compose(overrides=[f"+logger={name}"])
    assert config.logger.wandb.enabled == enabled and config.logger.wandb.project == "diffusion_lab"
