"""One job of a sweep: in its own process and directory, skipped if it is finished, resumed if not.

The process that was started with `-m` trains nothing, so that no job can affect the next one (by its environment,
seeds, device memory or a crash), and a job does exactly what its command would do.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.command_line import override
from diffusion_lab.config.environment import AGENT, cluster_ranks
from diffusion_lab.config.validation import nearest
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch import process
from diffusion_lab.output import say
from diffusion_lab.storage.atomic_file import read_json, write_json
from diffusion_lab.storage.run_directory import RESULTS

JOB = "DIFFUSION_LAB_JOB"  # `report.in_sweep` asks for it
"""Environment variable of the processes of a sweep's job: the job's directory."""

RECORD, LOG, ERROR, WANDB_ID = "job.json", "jobs.jsonl", "error.txt", "wandb_run_id.txt"
"""Files: a job and its status; all jobs of a sweep so far; why a job failed; the id of its run of W&B."""


def run_job(start: Sequence[str], config: DictConfig, directory_keys: Sequence[str] = ()) -> float | None:
    """Run the job that Hydra has composed, or skip it if it is finished; return the optimised metric, if there is one.

    Args:
        start: the program, see `process.program`.
        directory_keys: keys whose value is the job's directory.

    Raises:
        RuntimeError: for a failed job, if the sweeper needs its metric; otherwise the table reports it.
    """
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    before, job = read_json(directory / RECORD), describe(config, hydra)
    note = obstacle(directory, before, job)
    if note:
        job |= {"status": "refused", "note": note}
        print(f"job {job['number']}: error: {note}", file=sys.stderr, flush=True)
    elif before.get("status") == "finished":
        job |= {"status": "skipped, finished", "seconds": before["seconds"]}
        say(f"job {job['number']}: skipped, finished   {os.path.relpath(directory)}")
    else:
        more = [override(key, str(directory)) for key in directory_keys]
        more += ["logger.wandb.id=null"] if OmegaConf.select(config, "logger.wandb.id") in other_ids(directory) else []
        if before:
            newest = next(iter(sorted(directory.glob("checkpoints/*.ckpt"), reverse=True)), None)
            job["note"] = f"resumed from {newest.name}" if newest else "started again: it had no checkpoint"
            more += [override("ckpt_path", str(directory))] if newest else []
        job |= run_to_end(process.command(start, hydra, *more, subdir=hydra.output_subdir), directory, job, hydra)
    log(Path(hydra.runtime.cwd, hydra.sweep.dir), job)
    if job["status"].startswith("stopped"):
        sys.exit(job["exit"])
    return measured(config.get("optimized_metric"), directory, job)


def describe(config: DictConfig, hydra: Any) -> dict[str, Any]:
    """Describe a job: its overrides, and a digest of its full configuration."""
    plain = json.dumps(OmegaConf.to_container(config, resolve=False), sort_keys=True)
    return {
        "number": hydra.job.num,
        "directory": str(hydra.runtime.output_dir),
        "overrides": OmegaConf.to_container(hydra.overrides.task, resolve=False),
        "configuration": hashlib.sha256(plain.encode()).hexdigest(),
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "begun": time.time(),
        "seconds": 0.0,
        "note": "",
    }


def obstacle(directory: Path, before: Mapping[str, Any], job: Mapping[str, Any]) -> str:
    """Return why a job cannot run in its directory; empty if it can."""
    if before and before["configuration"] != job["configuration"]:
        file = directory / ".hydra" / "overrides.yaml"
        if file.is_file():  # Hydra has just replaced the other job's overrides by this one's
            OmegaConf.save(OmegaConf.create(before["overrides"]), file)
        other = " ".join(before["overrides"]) + " with other defaults" * (before["overrides"] == job["overrides"])
        return f"{os.path.relpath(directory)} holds another job ({other}): remove it, or set another hydra.sweep.dir"
    running = before.get("status") == "running" and before["host"] == job["host"] and cluster_ranks()[1] == 0
    if running and psutil.pid_exists(before["pid"]):
        return f"process {before['pid']} already runs in it"
    return ""


def run_to_end(command: Sequence[str], directory: Path, job: Mapping[str, Any], hydra: Any) -> dict[str, Any]:
    """Run a job's command to its end; return the entries about its end for its record."""
    overrides = " ".join(job["overrides"])
    if cluster_ranks()[1] == 0:
        say(f"job {job['number']}: {overrides}   -> {os.path.relpath(directory)}   {job['note']}".rstrip())
        (directory / ERROR).unlink(missing_ok=True)
    record(directory, {**job, "status": "running"})
    code, stopped = process.run(command, environment(directory, job["number"]), hydra.runtime.cwd)
    end = {"status": "finished", "exit": code, "seconds": round(time.time() - job["begun"], 1)}
    if stopped:
        end |= {"status": f"stopped by {signal.Signals(stopped).name}", "exit": 128 + stopped}
    elif code:
        end |= {"status": "refused" if code == 2 else "failed", "note": reason(directory, code)}
        say(f"job {job['number']}: {end['status']}: {end['note']}")
    elif cluster_ranks()[1] == 0:
        values = [f"{name} {record['value']:.4g}" for name, record in list(metrics(directory).items())[:2]]
        say(f"job {job['number']}: finished in {end['seconds']:.0f} s{''.join(f', {value}' for value in values)}")
    record(directory, {**job, **end})
    return end


def environment(directory: Path, number: int) -> dict[str, str]:
    """Return the environment of a job: that of this process, with the job's directory."""
    found = {**os.environ, JOB: str(directory)}
    if found.get("WANDB_RUN_ID") in other_ids(directory):
        del found["WANDB_RUN_ID"]
    if cluster_ranks()[2] > 1:  # another rendezvous than the job before, which some ranks may not have left
        found["MASTER_PORT"] = str(int(found.get("MASTER_PORT", 29500)) + 1 + number)
        found["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    return found


def other_ids(directory: Path) -> set[str]:
    """Return the ids of W&B runs of other jobs: an id set by the user is used by the first job only."""
    return {p.read_text().strip() for p in directory.parent.glob(f"*/{WANDB_ID}") if p.parent != directory}


def reason(directory: Path, code: int) -> str:
    """Return why a job failed, in one line: the first error that one of its ranks recorded, or its exit status."""
    if (directory / ERROR).is_file():
        return (directory / ERROR).read_text(encoding="utf-8").partition("\n")[0]
    if code > 128:
        return f"killed by {signal.Signals(code - 128).name}" + (" (out of memory?)" if code == 137 else "")
    return f"exit status {code}"


@contextmanager
def errors_recorded() -> Iterator[None]:
    """Context in a process of a sweep's job: write beside the job why it failed; stop when the sweep is killed."""
    if JOB not in os.environ:
        yield
        return
    if AGENT not in os.environ:  # ranks die with their agent
        process.die_with_parent(signal.SIGTERM)
    try:
        yield
    except Exception as error:
        message = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        rank = next((f"rank {os.environ[k]}: " for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ), "")
        record_error(f"{rank}{' '.join(message.split())}", traceback.format_exc())
        raise


def record_error(message: str, trace: str = "") -> None:
    """Write beside a sweep's job why it failed, if this process belongs to one."""
    if JOB in os.environ:
        with Path(os.environ[JOB], ERROR).open("a", encoding="utf-8") as file:
            file.write(f"{message}\n\n{trace}\n")


def measured(metric: str | None, directory: Path, job: Mapping[str, Any]) -> float | None:
    """Return the metric of a job that the sweeper optimises."""
    if metric is None:
        return None
    if "finished" not in job["status"]:
        raise RuntimeError(f"job {job['number']} {job['status']}: {job['note']}")
    found = metrics(directory)
    if metric not in found:
        there = f"{nearest(metric, found, 0.4)}; there are: {', '.join(found) or 'none'}"
        raise RuntimeError(f"optimized_metric={metric}: no such metric{there}")
    return float(found[metric]["value"])


def metrics(directory: Path) -> dict[str, Any]:
    """Return the metrics of a job's results.json; empty without one."""
    return read_json(directory / RESULTS).get("metrics", {})


def record(directory: Path, job: Mapping[str, Any]) -> None:
    """Write a job's record with its status, on rank 0."""
    if cluster_ranks()[1] == 0:
        write_json(directory / RECORD, job)


def log(sweep: Path, job: Mapping[str, Any]) -> None:
    """Append a job to the log from which the sweep's table is made; jobs may end at the same time."""
    if cluster_ranks()[1] == 0:
        with (sweep / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(job) + "\n")
