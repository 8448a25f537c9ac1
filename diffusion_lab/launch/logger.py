"""A run's loggers: always a CSV file, and Weights & Biases, which may not make a run ask, wait or die."""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import netrc
import os
import queue
import secrets
import shlex
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from diffusion_lab.launch.csv_logger import CSVLogger
from diffusion_lab.launch.instantiate import ConfigError, instantiate
from diffusion_lab.launch.report import say

Mode = Literal["online", "offline", "disabled"]

CLOUD = ("api.forge.coreweave.com", "api.wandb.ai")
"""Names of W&B's own server; a key stored under either is good for both."""

PROBE_SECONDS, INIT_SECONDS, FINISH_SECONDS = 5.0, 10.0, 300.0
"""Longest wait for the server to answer, to open the run, to take the last upload (the rest stays here)."""


@dataclass(frozen=True)
class WandbOptions:
    """The keys of `logger.wandb`, explained in conf/logger/default.yaml; plain data."""

    enabled: Literal["auto"] | bool = "auto"
    project: str = "diffusion_lab"
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    tags: Sequence[str] = ()
    mode: Literal["auto", "online", "offline"] = "auto"
    on_no_network: Literal["offline", "error"] = "offline"
    log_model: bool = False
    id: str | None = None


def build_loggers(cfg: Mapping[str, Any], run_dir: str | Path, config: Mapping[str, Any]) -> list[Logger]:
    """The loggers that the plain node `logger` asks for; W&B's run is open and shows `config` and `run_dir`.

    Only rank 0 looks for W&B's server and opens the run.  End with `finish_loggers`.

    Raises:
        ConfigError: for an unknown key, if wandb is missing, or for no server where that counts as an error.
    """
    run_dir, node = Path(run_dir), cfg.get("wandb", {"enabled": False})
    options = instantiate({**node, "_target_": f"{__name__}.WandbOptions"}, "logger.wandb")
    loggers: list[Logger] = [CSVLogger(run_dir)]
    if _wants_wandb(options):
        run = _open_run(options, run_dir, config) if rank_zero_only.rank == 0 else None
        loggers.append(WandbLogger(project=options.project, save_dir=str(run_dir), experiment=run))
    return loggers


def finish_loggers(loggers: Sequence[Logger], failed: bool = False, model: str | Path | None = None) -> None:
    """Write what is left, end W&B's run and stop its service, so that the next job's run is another one.

    `model`, a checkpoint, is uploaded as the run's artifact first (what logger.wandb.log_model asks for).
    """
    runs = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    try:
        for logger in loggers:
            logger.finalize("failed" if failed else "success")
    finally:
        if runs and rank_zero_only.rank == 0:
            import wandb

            if model is not None:
                runs[0].experiment.log_artifact(str(model), name=f"model-{runs[0].version}", type="model")
            wandb.finish(exit_code=int(failed))
            wandb.teardown()


def wandb_mode(
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    api_host: str | None = None,
    timeout: float = PROBE_SECONDS,
) -> tuple[Mode, str]:
    """(mode, reason) for W&B now: online takes a key and a server that answers within `timeout` s.

    "auto" follows WANDB_MODE and `wandb offline`.  `api_host` is a URL; None: the configured one.
    """
    wanted = _wanted(mode)
    if wanted != "online":
        return wanted, "as asked for"
    if not has_key():
        return "offline", "no API key: set WANDB_API_KEY or run `wandb login`"
    reason = _no_answer(api_host or _server(), timeout)
    return ("offline", reason) if reason else ("online", "the server answers")


def has_key() -> bool:
    """Whether there is an API key: in the environment, in wandb's settings, or in netrc for its server."""
    settings = _settings()
    if "api_key" in settings or any(map(os.environ.get, ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))):
        return True
    host = urlsplit(settings.get("base_url", f"https://{CLOUD[0]}")).netloc
    candidates = (Path(p).expanduser() for p in (os.environ.get("NETRC") or "~/.netrc", "~/_netrc"))
    path = next(filter(Path.is_file, candidates), None)
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        stored = netrc.netrc(path) if path else None
        return stored is not None and any(map(stored.authenticators, CLOUD if host in CLOUD else (host,)))
    return False


def _settings() -> dict[str, str]:
    """wandb's settings (mode, base_url, api_key): what its commands have written, then the environment."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    parser = configparser.RawConfigParser()
    with contextlib.suppress(OSError, UnicodeDecodeError, configparser.Error):
        parser.read([folder / "settings", Path(os.environ.get("WANDB_DIR", "."), "wandb", "settings")])
    written = dict(parser.items("default")) if parser.has_section("default") else {}
    said = {"mode": os.environ.get("WANDB_MODE"), "base_url": os.environ.get("WANDB_BASE_URL")}
    return written | {key: value for key, value in said.items() if value}


def _server() -> str:
    import wandb

    return _settings().get("base_url") or wandb.Settings().base_url


def _wanted(mode: str) -> Mode:
    """The mode that is asked for; "auto" leaves it to wandb's settings, and is online without any."""
    word = _settings().get("mode", "online") if mode == "auto" else mode
    return {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}.get(word, "online")


def _no_answer(url: str, timeout: float) -> str | None:
    """Why there is no answer from a URL (through the proxy, if one is set), or None if there is one."""
    outcome: queue.Queue[str | None] = queue.Queue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.build_opener().open(request, timeout=timeout + 1).close()
            outcome.put(None)
        except urllib.error.HTTPError as error:
            outcome.put(f"{url} answers with status {error.code}" if error.code >= 500 else None)
        except Exception as error:
            reason = getattr(error, "reason", error)
            # A certificate that only Python mistrusts is an answer too: wandb brings its own TLS.
            outcome.put(None if isinstance(reason, ssl.SSLError) else f"{url} cannot be reached: {reason}")

    # Looking up a name heeds no timeout, hence a thread that can be left behind.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return outcome.get(timeout=timeout)
    except queue.Empty:
        return f"{url} did not answer within {timeout:g} s"


def _wants_wandb(options: WandbOptions) -> bool:
    if options.enabled is False or _wanted(options.mode) == "disabled":
        return False
    if options.enabled == "auto" and options.mode == "auto" and not has_key():
        return False
    found = importlib.util.find_spec("wandb")
    if found is not None and found.origin is not None:  # a folder ./wandb of earlier runs has no origin
        return True
    remedy = "wandb is not installed: pip install wandb, or say logger=csv"
    if options.enabled is True:
        raise ConfigError(remedy)
    say(f"W&B is configured here, but {remedy}; metrics go to the CSV file only")
    return False


def _open_run(options: WandbOptions, run_dir: Path, config: Mapping[str, Any]) -> Any:
    """Open W&B's run, online if possible, and say so once if it is not."""
    import wandb

    path = run_dir / "wandb_run_id.txt"
    kept = path.read_text().strip() if path.is_file() else os.environ.get("WANDB_RUN_ID")
    run_id = options.id or kept or secrets.token_hex(4)
    run, (mode, reason) = None, wandb_mode(options.mode)
    if mode == "online":
        try:
            run = _init(options, run_dir, config, run_id, mode)
        except Exception as error:  # whatever it is, training must go on
            reason = (str(error) or type(error).__name__).splitlines()[0]
            wandb.teardown()  # its service still holds the run's id
    if run is None:
        if options.on_no_network == "error" and _wanted(options.mode) == "online":
            raise ConfigError(f"W&B cannot go online: {reason}; logger.wandb.on_no_network=offline goes on")
        run = _init(options, run_dir, config, run_id, "offline")
        pieces = f"{shlex.quote(str(run_dir / 'wandb'))}/offline-run-*-{run_id}"
        say(f"W&B is offline ({reason}); upload the run later with: wandb sync {pieces}")
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    temporary = run_dir / ".wandb_run_id.tmp.txt"
    temporary.write_text(f"{run_id}\n")
    os.replace(temporary, path)
    return run


def _init(options: WandbOptions, run_dir: Path, config: Mapping[str, Any], run_id: str, mode: Mode) -> Any:
    """`wandb.init`; Lightning's own call of it would set WANDB_MODE for every later run of the process."""
    import wandb

    run_dir.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=options.project,
        entity=options.entity,
        group=options.group,
        name=options.name,
        tags=list(options.tags),
        config={**config, "run_dir": str(run_dir.resolve())},
        dir=str(run_dir),
        id=run_id,
        mode=mode,
        resume="allow",
        reinit="finish_previous",
        settings=wandb.Settings(init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, silent=mode == "offline"),
    )
