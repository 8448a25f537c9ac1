"""What a run prints for the user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from diffusion_lab.callback import Accuracy, Evaluation
from diffusion_lab.config import origin
from diffusion_lab.data import DataModule
from diffusion_lab.evaluation.results import read_results
from diffusion_lab.model import Classifier, Model, Training
from diffusion_lab.output import listed, print_table, say, shown
from diffusion_lab.page import PAGE, metric
from diffusion_lab.plot import charts
from diffusion_lab.sampler import for_consistency_models
from diffusion_lab.storage.revision import revision
from diffusion_lab.storage.run_directory import RESULTS

FILES = (
    (PAGE, "all of this on one page"),
    ("checkpoints", "weights, with everything needed to sample from them"),
    ("samples.png", "samples"),
    ("samples", "samples of the same noise, during training"),
    ("trajectory.png", "from noise to samples"),
    ("trajectory.gif", "the same as a film"),
    ("accuracy.png", "accuracy at each noise level"),
    ("score_error.png", "learned and true score"),
    ("mode_weights.png", "the weights of the modes, by sampler"),
    (RESULTS, ""),
    ("metrics.csv", "loss, learning rate, gradient norm, images/s"),
    ("fit-profile.txt", "where the time went"),
    ("schedule.png", "the noise schedule"),
    ("config.yaml", "the resolved configuration"),
)
"""What a run directory may hold, in the order in which it is listed."""


def in_sweep() -> bool:
    """Whether this process is a job of a sweep, which prints the results of all jobs together."""
    return "DIFFUSION_LAB_JOB" in os.environ


def say_limits(evaluator: Any, data: Any, likelihood: bool) -> None:
    """Print which metrics an evaluation leaves out, and which are unreliable, before anything is sampled."""
    for reason in evaluator.left_out(data, likelihood):
        say(f"left out: {reason}")
    for warning in evaluator.warnings(data):
        say(f"warning: {warning}")


def say_classes(model: Model) -> None:
    """Warn of samples of some classes that are scored against all classes."""
    labels = model.sampled_labels()
    asked = None if labels is None else labels.numbers(model.label)
    if asked is not None and {*asked} != {*range(labels.classes)}:
        classes = listed([labels.names[number] for number in dict.fromkeys(asked)])
        say(f"warning: the samples are of class {classes} only, and are scored against images of all classes")


def describe_sampler(name: str, sampler: dict[str, Any]) -> str:
    """Describe a sampler by its name and all of its settings."""
    words, kinds = [], []
    for part in ("predictor", "corrector"):
        options = dict(sampler.get(part) or {})
        if target := options.pop("_target_", None):
            prefix = "corrector." if part == "corrector" else ""
            words += [f"{prefix}{k}={v}" for k, v in options.items() if v is not None]
            kinds.append(f"{part}={target.rpartition('.')[2]}")
    own = {k: v for k, v in sampler.items() if k[0] != "_" and not isinstance(v, dict)}
    words += [f"{k}={v}" for k, v in own.items() if v is not None]
    return f"{name} ({', '.join(words + kinds)})" if words + kinds else name


def facts(
    choices: Mapping[str, Any],
    model: Training,
    seed: int | None,
    sampler: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the fields of a results record that identify model, data, sampler and code."""
    return {
        **{group: choices.get(group) for group in ("model", "sde", "data", "schedule", "network")},
        "parameters": sum(p.numel() for p in model.network.parameters()),
        **({} if sampler is None else {"sampler": describe_sampler(sampler, settings), **how_sampled(model)}),
        "seed": seed,
        "revision": revision(),
    }


def how_sampled(model: Model) -> dict[str, str]:
    """The labels of a model's samples, its guidance and its control, if there are any."""
    classes = model.sampled_labels()
    return {
        **({} if classes is None else {"labels": classes.describe(model.label)}),
        **({} if model.guidance is None else {"guidance": str(model.guidance)}),
        **({} if model.control is None else {"control": str(model.control)}),
    }


def announce(
    settings: dict[str, Any], data: DataModule, model: Training, trainer: pl.Trainer, run_dir: Path, step: int
) -> None:
    """Print what is trained from `step` on, and plot the noise schedule."""
    sampler = getattr(model, "sampler", None)
    if hasattr(sampler, "caution") and (said := sampler.caution(model.denoiser)):
        say(said)
    process = model.denoiser.process
    times = process.timesteps(None).flip(0)
    discrete = f"discrete process, {process.levels:,} level{'s' * (process.levels > 1)}" if process.levels else ""
    title = f"{discrete or type(process).__name__}, schedule {settings['choices']['schedule']}"
    charts.schedule_plot(times, process.alpha(times), process.sigma(times), run_dir / "schedule.png", title)
    count = sum(p.numel() for p in model.network.parameters())
    batch = data.batch_size * settings["trainer"]["accumulate_grad_batches"]
    if not in_sweep():
        say(f"data     {data.describe()}")
        name, kind = settings["choices"]["model"], type(model).__name__
        called = kind if name.replace("_", "") == kind.lower() else f"{name} ({kind})"
        say(f"model    {called}, {type(model.network).__name__} with {count:,} parameters, {title}")
        if model.labels is not None:
            what = "predicted" if isinstance(model, Classifier) else "conditional"
            say(f"labels   {what}, {model.labels.classes} classes: {listed(model.labels.names)}")
        if loss := [word for word in settings.get("overrides", ()) if word.lstrip("+").startswith(("loss=", "loss."))]:
            say(f"loss     {', '.join(loss)}")
    ranks = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
    if 0 < trainer.max_steps <= step:
        further = "trainer.max_steps=... (and decay_steps=...) trains on"
        say(f"training is done: step {step:,} of {trainer.max_steps:,}; {further}")
    else:
        since = f"from step {step:,} to {trainer.max_steps:,}" if step else f"{trainer.max_steps:,} steps"
        say(f"training {since}, {batch} {model.kind} a step on {ranks}")
        before = read_results(run_dir / RESULTS) if step else None
        if before is not None and evaluates(trainer):
            say(f"{RESULTS} holds the results of step {before.get('step')}: the next evaluation replaces it")
    if not in_sweep():
        say(f"run      {run_dir}")


def evaluates(trainer: pl.Trainer) -> bool:
    """Whether a training is evaluated, meanwhile or at its end."""
    return any(isinstance(c, Evaluation) and (c.at_end or c.every_n_steps) for c in trainer.callbacks)


def conclude(trainer: pl.Trainer, run_dir: Path) -> None:
    """Print the table of results, the files of the run, and the command that samples from it."""
    if trainer.global_step < trainer.max_steps:
        say(f"trainer.max_time has ended it at step {trainer.global_step:,} of {trainer.max_steps:,}")
    evaluation = next((c for c in trainer.callbacks if isinstance(c, (Accuracy, Evaluation))), None)
    results = (evaluation and evaluation.results) or read_results(run_dir / RESULTS)
    current = results is not None and results.get("step") == trainer.global_step
    if current and not in_sweep():
        table(results)
    elif not current and getattr(evaluation, "at_end", False):
        say(f"it was not evaluated; do so by:  {origin.command('sample', run_dir, 'evaluate=true')}")
    if in_sweep():
        return
    say(f"in {os.path.relpath(run_dir)}:")
    if not current:
        numbers = f"the numbers of step {(results or {}).get('step')}, with their protocol"
    elif results["metrics"]:
        numbers = "the numbers above, with their protocol"
    else:
        numbers = "settings and times; no metric was computed"
    for name, what in FILES:
        if (run_dir / name).exists():
            say(f"  {name + '/' * (run_dir / name).is_dir():<16} {what or numbers}")
    if isinstance(trainer.lightning_module, Classifier):
        say(guide_by(run_dir))
        return
    model = trainer.lightning_module
    process = model.denoiser.process
    own = process.levels == 1 or process.keeps_signal or for_consistency_models(model.sampler)
    other = [] if own else ["sampler=ddim"]  # even steps of t up to a large sigma leave noise where alpha = 1
    say(f"sample from it:  {origin.command('sample', run_dir, *other)}")


def guide_by(run_dir: Path) -> str:
    """How to use a classifier, in words."""
    place = origin.quoted(str(run_dir.absolute()))
    return f"guide a model of the same data and noise by it:  guidance=classifier guidance.ckpt_path={place}"


def table(results: dict[str, Any]) -> None:
    """Print the metrics of a results record, one row each, with the score of real data where known."""
    from rich.table import Table
    from rich.text import Text

    grid = Table()
    for column in ("metric", "value", "real data"):
        right = column != "metric"
        grid.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for name, record in results["metrics"].items():
        row = metric(name, record)
        for cells in ((name, row.value, row.real), *((f"  {term}", part, "") for term, part in row.terms)):
            grid.add_row(*(Text(shown(cell)) for cell in cells))
    sampler = f", sampler {results['sampler']}" if "sampler" in results else ""
    say(f"step {results['step']}, {results['weights']} weights{sampler}")
    if not results["metrics"]:
        say("nothing was measured: there is no metric and no likelihood")
        return
    print_table(grid)
    for line in beside(results["metrics"]):
        say(line)


def beside(metrics: dict[str, Any]) -> list[str]:
    """Return lines with the reference of the metrics and the number of samples in each class."""
    references = dict.fromkeys(record.get("protocol", {}).get("reference") for record in metrics.values())
    lines = [f"against {', '.join(found)}"] if (found := [str(name) for name in references if name]) else []
    for record in metrics.values():
        if "classes" in record:
            counts = " ".join(f"{label}:{count}" for label, count in record["classes"].items())
            lines.append(f"classes drawn: {len(record['classes'])} ({counts})")
    return lines
