"""A run of Weights & Biases, which never asks a question, blocks or ends the training."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from pytorch_lightning import loggers

from diffusion_lab.errors import ConfigError
from diffusion_lab.logger.optional import BestEffort, first_line, media
from diffusion_lab.logger.wandb_server import Mode, configured_mode, wandb_mode
from diffusion_lab.output import say
from diffusion_lab.storage import lock as file_lock
from diffusion_lab.storage.atomic_file import write_text
from diffusion_lab.storage.run_directory import newest_step

INIT_SECONDS, FINISH_SECONDS, UPLOAD_SECONDS = 10.0, 300.0, 3600.0
"""Longest wait for the server to open the run, to receive the last numbers, or those and a checkpoint to be uploaded;
what it has not received by then stays in the run's directory."""

ID_FILE = "wandb_run_id.txt"

_opened: dict[str, Path] = {}


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


class WandbLogger(BestEffort, loggers.WandbLogger):
    """An open run; if W&B fails during training, that is reported once, and training continues without it.

    Args:
        run: the run that `open_run` opened.
        run_dir: the run's directory.
        sent: see `BestEffort`.
        held: the lock file that `lock` returned, closed at the end.
        log_model: upload the newest checkpoint, and the best one if there is one, at the end.
    """

    label, instead = "W&B", "training continues with its other logs"

    def __init__(
        self,
        run: Any,
        run_dir: Path,
        sent: AbstractSet[tuple[int, str]] = frozenset(),
        held: TextIO | None = None,
        log_model: bool = False,
    ) -> None:
        super().__init__(sent, save_dir=str(run_dir), project=run.project, experiment=run)
        self.run_dir, self.held, self.log_model = run_dir, held, log_model

    def send_pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        import wandb

        self.send(media(wandb, pictures), step)

    def upload(self, row: Callable[[int], Mapping[str, float]]) -> None:
        """Upload the newest and the best checkpoint as versions of the artifact model-<run id>, under those aliases.

        The metadata of each are its step, what was logged for that step (`row`), and the revision of the code.
        """
        import wandb

        best, newest = self.run_dir / "checkpoints" / "best.ckpt", newest_step(self.run_dir)
        # The newest last: W&B always calls the last version "latest".
        for alias, path in (("best", best if best.is_file() else None), ("latest", newest)):
            if path is None:
                continue
            step = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
            facts = {"step": step, "metrics": dict(row(step)), "revision": self.experiment.config.get("revision")}
            artifact = wandb.Artifact(f"model-{self.version}", type="model", metadata=facts)
            # The same name in every version: W&B stores a file that is both newest and best only once.
            artifact.add_file(str(self._kept(path)), name="model.ckpt", policy="immutable")
            self.experiment.log_artifact(artifact, aliases=[alias, f"step_{step}"])

    def _kept(self, path: Path) -> Path:
        """The file, or, for `wandb sync` later, a second name of it that no resumed run deletes or replaces."""
        if not self.experiment.offline:
            return path
        kept = self.run_dir / "wandb" / "models" / f"{path.stem}-{secrets.token_hex(4)}.ckpt"
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, kept)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, kept)
        return kept

    def finish(self, failed: bool, row: Callable[[int], Mapping[str, float]]) -> None:
        """Upload checkpoints if configured, end the run, and stop W&B's service, so the next job starts a new run."""
        import wandb

        if self.log_model:
            self.attempt(lambda: self.upload(row), "the checkpoints are in the run's directory")
        self.attempt(lambda: wandb.finish(exit_code=int(failed)), "what it has is in the run's directory")
        end_service()
        if self.held is not None:
            self.held.close()

    def abandon(self) -> None:
        end_service()  # it also captures what is printed


def end_service() -> None:
    """Stop wandb's process in any state."""
    import wandb

    for stop in (wandb.finish, wandb.teardown):
        with contextlib.suppress(Exception):
            stop(exit_code=1)


def choose_id(options: WandbOptions, run_dir: Path) -> str:
    """The configured id, else that of the directory, else WANDB_RUN_ID, or a new one.

    An id that another directory of this process has used is not used again: each job of a sweep has its own id.
    """

    def unused(run_id: str | None) -> str | None:
        return run_id if run_id and _opened.get(run_id, run_dir.resolve()) == run_dir.resolve() else None

    return unused(options.id) or read_id(run_dir) or unused(os.environ.get("WANDB_RUN_ID")) or secrets.token_hex(4)


def open_run(options: WandbOptions, run_dir: Path, config: Mapping[str, Any]) -> Any:
    """Open W&B's run `options.id`, online if possible; otherwise report why not."""
    run, (mode, reason) = None, wandb_mode(options.mode)
    try:
        if mode == "online":
            try:
                run = _init(options, run_dir, config, mode)
            except Exception as error:  # of any class: training must go on
                reason = first_line(error)
                end_service()  # which still holds the run's id
        if run is None:
            if options.on_no_network == "error" and configured_mode(options.mode) == "online":
                raise ConfigError(f"W&B cannot go online: {reason}; logger.wandb.on_no_network=offline continues")
            run = _init(options, run_dir, config, "offline")
            pieces = f"{shlex.quote(str(run_dir / 'wandb'))}/offline-run-*-{options.id}"
            say(f"W&B is offline ({reason}); upload the run later with: wandb sync {pieces}")
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        write_text(run_dir / ID_FILE, f"{options.id}\n")
    except BaseException:
        end_service()  # nobody else would, and the next job would log into this run
        raise
    _opened[options.id] = run_dir.resolve()
    return run


def read_id(run_dir: Path) -> str | None:
    """The id of a run directory's run, if it has one."""
    path = run_dir / ID_FILE
    return (path.read_text().strip() or None) if path.is_file() else None


def _init(options: WandbOptions, run_dir: Path, config: Mapping[str, Any], mode: Mode) -> Any:
    """Call `wandb.init`; Lightning's own call would set WANDB_MODE for every later run of the process."""
    import wandb

    run_dir.mkdir(parents=True, exist_ok=True)
    last = UPLOAD_SECONDS if options.log_model else FINISH_SECONDS
    return wandb.init(
        project=options.project,
        entity=options.entity,
        group=options.group,
        name=options.name,
        tags=list(options.tags) or None,  # an empty list would remove those of a resumed run
        config={**config, "run_dir": str(run_dir.resolve())},
        dir=str(run_dir),
        id=options.id,
        mode=mode,
        resume="allow",
        reinit="finish_previous",
        settings=wandb.Settings(init_timeout=INIT_SECONDS, finish_timeout=last, silent=mode == "offline"),
    )


def lock(run_dir: Path) -> TextIO | None:
    """Lock a directory's run while this process logs to it (W&B would mix two); None if another process does.

    The lock ends when the file is closed or the process ends.  On a file system without locks, nothing is locked.
    """
    path = run_dir / "wandb" / ".in_use"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    with contextlib.suppress(OSError):  # where there are no locks
        if not file_lock.lock(file):
            file.close()
            return None
    return file
