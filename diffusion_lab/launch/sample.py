"""One sampling run: checkpoint -> images on any number of devices -> pictures, files and, on request, numbers."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from lightning_fabric import Fabric
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from diffusion_lab import checkpoint, picture, ranks
from diffusion_lab.callback.evaluation import write_results
from diffusion_lab.callback.media import log_pictures
from diffusion_lab.callback.samples import draw_samples, draw_trajectory, filmed
from diffusion_lab.evaluation import Evaluator, Series
from diffusion_lab.launch.compare import compare
from diffusion_lab.launch.compose import plain
from diffusion_lab.launch.instantiate import ConfigError, instantiate
from diffusion_lab.launch.logger import finish_loggers, reopen
from diffusion_lab.launch.report import say, table
from diffusion_lab.launch.request import FILE, folder, request
from diffusion_lab.launch.revision import revision
from diffusion_lab.launch.train import describe_sampler, quieten
from diffusion_lab.model import Model


def sample(config: DictConfig) -> None:
    """Draw, write and score as configured; what an earlier, killed run of the same command has drawn is kept."""
    quieten()
    path = checkpoint.find(config.ckpt_path, config.paths.log_dir)
    contents = checkpoint.read(path)
    model = checkpoint.build(contents, config.weights)
    name, settings = choose_sampler(config, contents["config"])
    fabric = build_fabric(config)
    try:
        model.sampler = instantiate(settings, "sampler")
        model.sampler.check(model.denoiser)
        model.likelihood = choose_likelihood(config, model)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    wanted = request(contents, model, config.weights, settings, config.trainer.precision, **drawing(config, fabric))
    model.to(fabric.device)
    scored = config.evaluate or config.compare
    evaluator, data = prepare_evaluation(config, contents["config"], model) if scored else (None, None)
    if config.compare:
        fabric.launch()
        values, picture_of_all = compare(config, fabric, contents, model, evaluator, data)
        if fabric.is_global_zero:
            publish(contents, path, values, {"sample/quality_vs_nfe": picture_of_all})
        return
    out = folder(wanted, name, config.paths.log_dir, config.out)
    count = config.num_samples if evaluator is None else max(config.num_samples, evaluator.samples * evaluator.repeats)
    fabric.launch()
    series = Series(out, model, seed=config.seed, batch_size=config.batch_size)
    draw(series, count, fabric, wanted, f"step {contents['global_step']} of {path} ({config.weights} weights)")
    write_samples(series, count, out, config, data)
    if fabric.is_global_zero:
        calls, rate = series.cost(count)
        say(f"{rate:,.1f} samples/s on one device, {calls:g} network evaluations for each; in {os.path.relpath(out)}")
    if evaluator is None:
        return
    metrics = {**evaluator.quality(series, data), **evaluator.likelihood(model, data, out)}
    if fabric.is_global_zero:
        results = facts(contents, path, config, describe_sampler(name, settings), model) | {
            "nfe": calls,
            "samples_per_second": rate,
            "metrics": metrics,
        }
        table(results)
        write_results(out / "results.json", with_earlier(results, out / "results.json"))
        say(f"written to {os.path.relpath(out)}: results.json")
        values = {f"sample/{name}_nfe{calls:g}/{metric}": record["value"] for metric, record in metrics.items()}
        publish(contents, path, values, {f"sample/{name}_nfe{calls:g}": out / "samples.png"})


def publish(contents: dict[str, Any], path: Path, values: dict[str, float], pictures: dict[str, Path]) -> None:
    """Send numbers and pictures to the W&B run and the TensorBoard of the training that the checkpoint is of."""
    if path.parent.name != "checkpoints":
        return
    loggers = reopen(path.parents[1], contents["config"].get("logger") or {})
    try:
        for logger in loggers:
            logger.log_metrics(values, step=contents["global_step"])
        log_pictures(loggers, pictures, contents["global_step"])
    finally:
        finish_loggers(loggers)


def build_fabric(config: DictConfig) -> Fabric:
    """The devices asked for, not yet at work."""
    try:
        return Fabric(**plain(config)["trainer"])
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        told = str(error).replace("\n", " ")
        raise ConfigError(f"trainer: {told}; use trainer.accelerator=cpu, or devices that exist") from error


def drawing(config: DictConfig, fabric: Fabric) -> dict[str, Any]:
    """What decides the last digits of an image beside model and sampler; noise is drawn on the device."""
    return {"seed": config.seed, "batch_size": config.batch_size, "device": fabric.device.type}


def draw(series: Series, count: int, fabric: Fabric, wanted: dict[str, Any], what: str) -> None:
    """Draw what is missing of a series, having said what there is to do."""
    out, missing = series.samples.folder.parent, sum(map(len, series.samples.missing(count)))
    if fabric.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        write_results(out / FILE, wanted)
        there = f"; {count - missing} of {count} are there already" if missing < count else ""
        say(f"sampling {missing} from {what} on {fabric.world_size} x {fabric.device.type}{there}")
    try:
        with fabric.autocast():
            series.complete(count)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def choose_sampler(config: DictConfig, trained: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, settings) of the sampler: the one named, or the checkpoint's with the given keys replaced."""
    config.variance = config.variance or trained.get("variance", "fixed_large")
    config.sampler_steps = config.sampler_steps or trained.get("sampler_steps")
    chosen = plain(config)["sampler"]
    if "_target_" in chosen:
        return HydraConfig.get().runtime.choices.sampler, chosen
    replaced = {k: v for k, v in chosen.items() if v is not None}
    return trained["choices"]["sampler"], {**trained["model"]["sampler"], **replaced}


def choose_likelihood(config: DictConfig, model: Model) -> dict[str, Any]:
    """The likelihoods named, or the checkpoint's."""
    if HydraConfig.get().runtime.choices.likelihood == "trained":
        return model.likelihood
    chosen = instantiate(plain(config)["likelihood"] or {}, "likelihood")
    if "bound" in chosen and model.denoiser.process.levels is None:
        raise ConfigError("likelihood=bound needs a model with discrete levels: choose likelihood=flow or none")
    return chosen


def prepare_evaluation(config: DictConfig, trained: dict[str, Any], model: Model) -> tuple[Evaluator, Any]:
    """The evaluator and the data of the checkpoint's run, refused now if something is missing."""
    settings = dict(trained["data"])
    if config.data_dir is not None:
        settings["data_dir"] = config.data_dir
    chosen = {
        **plain(config)["metric"],
        "likelihood_samples": config.likelihood_samples,
        "likelihood_repeats": config.likelihood_repeats,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "cache": config.paths.statistics_dir,
    }
    own = {k: v for k, v in chosen.items() if v is not None}
    try:
        data = instantiate(settings, "data")
        data.prepare_data()
        data.setup("test")
        evaluator = instantiate({**trained["callback"]["evaluation"]["evaluator"], **own}, "evaluator")
        evaluator.prepare(data, model.device)
        for reason in evaluator.left_out():
            say(f"left out: {reason}")
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return evaluator, data


def facts(contents: dict[str, Any], path: Path, config: DictConfig, sampler: str, model: Model) -> dict[str, Any]:
    """What a results record says beside its numbers."""
    trained = contents["config"]
    return {
        "run": str(Path(trained["paths"]["run_dir"] or path.parent)),
        "checkpoint": str(path),
        "step": contents["global_step"],
        "weights": config.weights,
        **{group: trained["choices"].get(group) for group in ("model", "sde", "data", "schedule", "network")},
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "sampler": sampler,
        "seed": config.seed,
        "revision": revision(),
    }


def with_earlier(results: dict[str, Any], path: Path) -> dict[str, Any]:
    """Results together with the metrics of other names that were measured on these samples before."""
    earlier = json.loads(path.read_text())["metrics"] if path.is_file() else {}
    return {**results, "metrics": {**earlier, **results["metrics"]}}


def write_samples(series: Series, count: int, out: Path, config: DictConfig, data: Any) -> None:
    """samples.png, and what else was asked for: samples.npz in one file, every image as a PNG, the trajectory."""
    if config.png and series.images:
        (out / "png").mkdir(exist_ok=True)
        with ranks.together():
            for chunk in ranks.own(series.samples.ranges(count)):
                write_pngs(series, chunk, out / "png")
    frames = filmed(series.model, 12, config.seed) if config.trajectory else None
    if ranks.rank_and_world()[0] != 0:
        return
    if config.npz:
        join(series, count, out / "samples.npz")
    shown = series.rows(range(min(count, config.grid if series.images else 10_000)))[:]
    shown = shown.permute(0, 3, 1, 2).float() / 255 if series.images else shown
    draw_samples(series.model, shown, out / "samples.png", data)
    if frames is not None:
        draw_trajectory(frames, out / "trajectory.png")


def write_pngs(series: Series, chunk: range, out: Path) -> None:
    """Every image of a chunk as `<index>.png`, those that are there already left alone."""
    for index, image in zip(chunk, series.samples.read(chunk).permute(0, 3, 1, 2), strict=True):
        path = out / f"{index:06d}.png"
        if not path.exists():
            picture.save_png(image, path)


def join(series: Series, count: int, path: Path) -> None:
    """One .npz of all samples: `images` uint8 (N, H, W, C), or `points` float32 (N, 2), a chunk in memory at a time."""
    first = series.rows(range(1))
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    with picture.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        name = "images.npy" if series.images else "points.npy"
        with archive.open(name, "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header | {"shape": (count, *first.shape[1:])})
            for chunk in series.samples.ranges(count):
                file.write(series.samples.read(chunk).numpy().tobytes())
