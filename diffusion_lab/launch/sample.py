"""One sampling run: checkpoint -> images -> pictures, files and, on request, numbers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from diffusion_lab import checkpoint, picture
from diffusion_lab.callback.evaluation import write_results
from diffusion_lab.callback.samples import draw_samples, draw_trajectory
from diffusion_lab.evaluation import Evaluator
from diffusion_lab.launch.compare import compare
from diffusion_lab.launch.compose import plain
from diffusion_lab.launch.instantiate import ConfigError, instantiate
from diffusion_lab.launch.report import say, table
from diffusion_lab.launch.train import describe_sampler, quieten
from diffusion_lab.metric import to_uint8
from diffusion_lab.model import Model


def sample(config: DictConfig) -> None:
    """Sample as configured, into Hydra's output directory."""
    quieten()
    out = Path(HydraConfig.get().runtime.output_dir)
    path = checkpoint.find(config.ckpt_path, config.paths.log_dir)
    contents = checkpoint.read(path)
    model = checkpoint.build(contents, config.weights).to(pick_device(config.device))
    name, settings = choose_sampler(config, contents["config"])
    try:
        model.sampler = instantiate(settings, "sampler")
        model.sampler.check(model.denoiser)
        model.likelihood = choose_likelihood(config, model)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    scored = config.evaluate or config.compare
    evaluator, data = prepare_evaluation(config, contents["config"], model) if scored else (None, None)
    if config.compare:
        compare(config, model, evaluator, data, out)
        say(f"written to {os.path.relpath(out)}: compare.json, compare.png")
        return
    say(f"sampling {config.num_samples} from step {contents['global_step']} of {path} ({config.weights} weights)")
    start = time.perf_counter()
    samples, calls = draw(model, config)
    seconds = time.perf_counter() - start
    write_samples(model, samples, out, config, data)
    rate = config.num_samples / seconds
    say(f"{rate:,.1f} samples/s, {calls:g} network evaluations for each; written to {os.path.relpath(out)}")
    if evaluator is None:
        return
    results = {
        "checkpoint": str(path),
        "step": contents["global_step"],
        "weights": config.weights,
        "sampler": describe_sampler(name, settings),
        "seed": config.seed,
        "nfe": calls,
        "samples_per_second": rate,
        "metrics": {**evaluator.quality([samples], data, model.device), **evaluator.likelihood(model, data)},
    }
    write_results(out / "results.json", results)
    table(results)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the accelerator if there is one."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name} is not available here: use device=auto or cpu") from error
    return torch.device(name)


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
    try:
        data = instantiate(settings, "data")
        data.prepare_data()
        data.setup("test")
        evaluator = instantiate(
            {**trained["callback"]["evaluation"]["evaluator"], "samples": config.num_samples, "seed": config.seed},
            "evaluator",
        )
        evaluator.prepare(data, model.device)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return evaluator, data


def draw(model: Model, config: DictConfig) -> tuple[Tensor, float]:
    """(samples in [0, 1], network evaluations for each)."""
    model.denoiser.nfe, parts = 0, []
    with tqdm(total=config.num_samples, unit="sample", desc="sampling") as bar:
        for batch in model.sample_batches(config.num_samples, seed=config.seed, first=0, batch_size=config.batch_size):
            parts.append(batch)
            bar.update(len(batch))
    samples = torch.cat(parts)
    if not samples.isfinite().all():
        raise ConfigError("the samples are not finite: nothing is written; try another checkpoint or weights=raw")
    return samples, model.denoiser.nfe / len(parts)


def write_samples(model: Model, samples: Tensor, out: Path, config: DictConfig, data: Any) -> None:
    """samples.npz (uint8 images (N, H, W, C), or float points), samples.png and what else was asked for."""
    out.mkdir(parents=True, exist_ok=True)
    images = len(model.shape) == 3
    stored = to_uint8(samples) if images else samples
    values = stored.permute(0, 2, 3, 1) if images else stored
    np.savez_compressed(out / "samples.npz", **{"images" if images else "points": values.numpy()})
    shown = samples[: config.grid] if images else samples
    draw_samples(model, shown, out / "samples.png", data)
    if config.png and images:
        (out / "png").mkdir(exist_ok=True)
        for index, image in enumerate(stored):
            picture.save_png(image, out / "png" / f"{index:06d}.png")
    if config.trajectory:
        draw_trajectory(model, out / "trajectory", 12, config.seed)
