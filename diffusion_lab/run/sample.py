"""One sampling run: checkpoint -> samples on any number of devices -> files and, on request, metrics."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from diffusion_lab.callback.media import log_pictures
from diffusion_lab.config.compose import plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.errors import ConfigError, as_config_error
from diffusion_lab.evaluation import Evaluator, SampleStore
from diffusion_lab.logger.loggers import finish_loggers, reopen
from diffusion_lab.model import Model
from diffusion_lab.output import say
from diffusion_lab.page import PAGE
from diffusion_lab.run.compare import compare, planned, sample_store
from diffusion_lab.run.data import data_module, located
from diffusion_lab.run.failure import explained
from diffusion_lab.run.lightning import build_fabric, compile_network, quieten
from diffusion_lab.run.page import RunPage
from diffusion_lab.run.plan import announce_plan
from diffusion_lab.run.rehearsal import rehearse_sampling
from diffusion_lab.run.report import facts, in_sweep, say_classes, say_limits, table
from diffusion_lab.run.sample_files import file_names, write_pngs, write_samples
from diffusion_lab.run.sample_spec import SampleSpec, claim, conditioning_spec, folder, sample_spec
from diffusion_lab.run.subject import Subject, load
from diffusion_lab.storage.atomic_file import read_json, write_json
from diffusion_lab.storage.run_directory import RESULTS
from diffusion_lab.storage.run_lock import locked


def sample(config: DictConfig) -> None:
    """Sample, write and score as configured; samples of an earlier, killed run of the same command are kept."""
    quieten()
    subject = load(config)
    fabric = build_fabric(plain(config)["trainer"])
    spec = sample_spec(
        subject.contents, subject.model, config.weights, subject.settings, config.trainer.precision,
        seed=config.seed, batch_size=config.batch_size, device=fabric.device.type,
        **({"compile": True} if config.compile else {}), **conditioning_spec(subject.model),
    )  # fmt: skip
    subject.model.to(fabric.device)
    if config.noise:
        check_noise(config, subject.model)
    if config.rehearsal:
        rehearse_sampling(subject.model, fabric, list(subject.model.likelihood) if config.evaluate else ())
    if config.compile:
        compile_network(subject.model.network, fabric.device, replay=True)
    scored = config.evaluate or config.compare
    if config.data or config.data_dir:
        located(subject.contents["config"], plain(config)["data"], config.data_dir)  # refuses any other key
    if config.compare:
        planned(config, subject.model, quiet=True)  # refuses samplers that do not exist
    evaluator, data = prepare_evaluation(config, subject) if scored else (None, None)
    if config.compare:
        sample_and_compare(config, fabric, spec, subject, evaluator, data)
        return
    out = folder(spec, subject.sampler, config.paths.log_dir, config.out)
    series = SampleStore(out, subject.model, seed=config.seed, batch_size=config.batch_size)
    count = config.num_samples if evaluator is None else max(config.num_samples, evaluator.total)
    if rank_zero_only.rank == 0:
        announce_plan(config, fabric, [series], count, what(config, subject), evaluator, data)
    with (
        explained(out, plain(config), "sample"),
        locked(out) if rank_zero_only.rank == 0 else nullcontext(),  # before there are others who would wait
    ):
        if rank_zero_only.rank == 0:
            claim(out, spec)
        fabric.launch()
        sample_and_score(config, fabric, subject, series, count, evaluator, data)


def check_noise(config: DictConfig, model: Model) -> None:
    """Raise ConfigError if the noise of samples cannot be written, or would have no samples beside it."""
    if not config.npz or config.compare:
        raise ConfigError("noise=true belongs to samples.npz: leave out npz=false and compare")
    with as_config_error(ValueError):
        model.starting_noise(range(1), config.seed)


def sample_and_compare(
    config: DictConfig, fabric: Fabric, spec: SampleSpec, subject: Subject, evaluator: Evaluator, data: Any
) -> None:
    """Sample and score with every sampler of the list `compare`."""
    if not evaluator.scores_samples(data):
        raise ConfigError("compare needs a metric of samples: choose metric=inception or another one")
    if rank_zero_only.rank == 0:
        points = planned(config, subject.model, quiet=True)
        stores = [sample_store(p, spec, subject.model, config.paths.log_dir, write=False) for p in points]
        count = evaluator.total
        announce_plan(config, fabric, stores, count, what(config, subject), evaluator, data)
    fabric.launch()
    values, curves = compare(config, fabric, spec, subject.model, evaluator, data)
    if fabric.is_global_zero:
        publish(subject, values, {"sample/quality_vs_nfe": curves})


def what(config: DictConfig, subject: Subject) -> str:
    """Describe what is sampled from."""
    return f"step {subject.step} of {subject.path} ({config.weights} weights)"


def sample_and_score(
    config: DictConfig,
    fabric: Fabric,
    subject: Subject,
    series: SampleStore,
    count: int,
    evaluator: Evaluator | None,
    data: Any,
) -> None:
    """Generate the missing samples; then score all of them, if there is an evaluator."""
    out = series.folder
    with as_config_error(ValueError, RuntimeError), fabric.autocast():
        features = (None, 0) if evaluator is None else (evaluator.features, evaluator.total)
        series.complete(count, *features, partial(write_pngs, series, out=out / "png") if config.png else None)
    write_samples(series, count, out, config, data)
    calls, rate = series.cost(count)
    if fabric.is_global_zero:
        say(f"{rate:,.1f} samples/s on one device, {calls:g} network evaluations per sample")
        say(f"in {os.path.relpath(out)}: {', '.join(file_names(config, series.model.control is not None))}")
    if evaluator is None:
        return
    with as_config_error(ValueError, RuntimeError):
        metrics = {**evaluator.quality(series, data), **evaluator.likelihood(subject.model, data, out)}
    if fabric.is_global_zero:
        cost = {"nfe": calls, "samples_per_second": rate}
        results = {**record(config, subject), **cost, "metrics": metrics}
        if not in_sweep():
            table(results)
        write_json(out / RESULTS, with_earlier(results, out / RESULTS))
        written = write_page(config, out)
        say(f"written to {os.path.relpath(out)}: {RESULTS}{written}")
        name = f"sample/{subject.sampler}_nfe{calls:g}"
        values = {f"{name}/{metric}": record["value"] for metric, record in metrics.items()}
        publish(subject, values, {name: out / "samples.png"})


def write_page(config: DictConfig, out: Path) -> str:
    """Write the page of samples unless report=false; return its name to be listed after others."""
    if not config.get("report", True):
        return ""
    return f", {PAGE}" * RunPage(out).write()


def publish(subject: Subject, values: dict[str, float], pictures: dict[str, Path]) -> None:
    """Log metrics and images to the W&B run and the TensorBoard log of the checkpoint's training."""
    if subject.path.parent.name != "checkpoints":
        return
    loggers = reopen(subject.path.parents[1], subject.contents["config"].get("logger") or {})
    try:
        for logger in loggers:
            logger.log_metrics(values, step=subject.step)
        log_pictures(loggers, pictures, subject.step)
    finally:
        finish_loggers(loggers)


def prepare_evaluation(config: DictConfig, subject: Subject) -> tuple[Evaluator, Any]:
    """Build the evaluator and the data of the checkpoint's run; refuse now if something is missing."""
    trained = subject.contents["config"]
    settings = located(trained, plain(config)["data"], config.data_dir)
    chosen = {
        **plain(config)["metric"],
        "samples": config.metric.samples or config.num_samples,
        "likelihood_samples": config.likelihood_samples,
        "likelihood_repeats": config.likelihood_repeats,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "cache": config.paths.statistics_dir,
    }
    given = {k: v for k, v in chosen.items() if v is not None}
    with as_config_error(OSError, ValueError):
        data = data_module(settings, "test")
        evaluator = instantiate({**trained["callback"]["evaluation"]["evaluator"], **given}, "evaluator")
        evaluator.prepare(data, subject.model.device)
        say_limits(evaluator, data, bool(subject.model.likelihood))
        if evaluator.scores_samples(data):
            say_classes(subject.model)
    return evaluator, data


def record(config: DictConfig, subject: Subject) -> dict[str, Any]:
    """Return the fields of a results record other than its metrics and cost."""
    trained = subject.contents["config"]
    return {
        "run": str(Path(trained["paths"]["run_dir"] or subject.path.parent)),
        "checkpoint": str(subject.path),
        "step": subject.step,
        "weights": config.weights,
        **facts(trained["choices"], subject.model, config.seed, subject.sampler, subject.settings),
    }


def with_earlier(results: dict[str, Any], path: Path) -> dict[str, Any]:
    """Add metrics that were computed earlier from the same samples to results."""
    return {**results, "metrics": {**read_json(path).get("metrics", {}), **results["metrics"]}}
