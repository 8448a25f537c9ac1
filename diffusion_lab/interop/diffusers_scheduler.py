"""diffusers' schedulers that make the steps of our samplers: one row for each process and step.

diffusers has three loops for images without a prompt, which call a scheduler in different ways: a row says which
pipeline and which scheduler, with which settings, and which arguments a call of the pipeline needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.process import VE, DiscreteProcess, ProbabilityPath, Rectified
from diffusion_lab.sampler import DDIM, EDM, Ancestral, DPMSolver, Langevin, ReverseDiffusion, Sampler


class Pipeline(NamedTuple):
    """A pipeline and a scheduler of diffusers, the scheduler's settings, the arguments of a call, and what differs."""

    name: str
    scheduler: str
    settings: dict[str, Any]
    call: dict[str, Any]
    differs: str = ""


LABELLED = "ConsistencyModelPipeline"
"""The pipeline that passes class labels, and scales the network's input as the scheduler says."""

SCORE = "ScoreSdeVePipeline"
"""The pipeline of a network whose output is the score."""

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
"""Our outputs -> diffusers' names."""


def pipeline_of(denoiser: Denoiser, sampler: Any) -> Pipeline:
    """The pipeline that samples as `sampler` does from the same noise.

    Raises:
        ValueError: if diffusers has none, with the reason.
    """
    kind = next((name for name, belongs in KINDS.items() if belongs(denoiser)), "")
    parts = [part for part in (getattr(sampler, key, None) for key in ("predictor", "corrector")) if part is not None]
    row = (kind, *map(type, parts))
    if type(sampler) is not Sampler or row not in ROWS:
        known = ", ".join(" with ".join(one.__name__ for one in steps) for name, *steps in ROWS if name == kind)
        instead = f"; of this process it has one for {known}" if known else ""
        process = f"{type(denoiser.process).__name__} with output={denoiser.parameterization.output}"
        what = " and ".join(type(part).__name__ for part in parts) or type(sampler).__name__
        raise ValueError(f"no scheduler for {what} of {process}{instead}")
    for key, assumed in ASSUMED.items():
        if (given := getattr(sampler, key)) != assumed:
            raise ValueError(f"no scheduler with sampler.{key}={given}")
    pipeline = ROWS[row](denoiser, sampler)
    if denoiser.classes is None or pipeline.name == LABELLED:
        return pipeline
    if more := [key for key in pipeline.call if key != "num_inference_steps"]:
        raise ValueError(f"no pipeline that passes class labels and {' and '.join(more)}")
    return pipeline._replace(name=LABELLED)


ASSUMED = {
    "denoise": True,
    "start": "prior",
    "t_start": None,
    "t_end": None,
    "dynamic_threshold": None,
}
"""Settings of a sampler that no scheduler has, and the value that all of them assume."""


def has_betas(denoiser: Denoiser) -> bool:
    """Discrete levels of a variance-preserving schedule, and a network conditioned on the level."""
    process, row = denoiser.process, denoiser.parameterization
    known = row.output in PREDICTIONS and row.sigma_data is None and (row.low, row.high) == (-1, 1)
    level = row.c_noise == "level" or (row.c_noise == "level_of_1000" and process.levels == 1000)
    return isinstance(process, DiscreteProcess) and not process.keeps_signal and known and level


def is_straight(denoiser: Denoiser) -> bool:
    """Flow matching on straight paths, with the network conditioned on 999 t."""
    process, row = denoiser.process, denoiser.parameterization
    straight = isinstance(process, ProbabilityPath) and isinstance(process.schedule, Rectified)
    return straight and (row.output, row.c_noise, row.low, row.high, row.unit_input) == ("u", "time_999", -1, 1, False)


def is_edm(denoiser: Denoiser) -> bool:
    """EDM's preconditioning of the variance-exploding process."""
    row = denoiser.parameterization
    preconditioned = (row.output, row.c_noise, row.low, row.high) == ("edm", "quarter_log_sigma", -1, 1)
    return isinstance(denoiser.process, VE) and preconditioned and row.unit_input and not row.boundary


def is_score(denoiser: Denoiser) -> bool:
    """The variance-exploding process of ScoreSDE, with the score scaled by sigma as output."""
    row = denoiser.parameterization
    published = (row.output, row.c_noise, row.low, row.high) == ("scaled_score", "log_sigma", 0, 1)
    return isinstance(denoiser.process, VE) and published and not row.unit_input


KINDS: dict[str, Callable[[Denoiser], bool]] = {
    "betas": has_betas,
    "straight": is_straight,
    "edm": is_edm,
    "score": is_score,
}


def betas(denoiser: Denoiser, sampler: Sampler, spacings: Spacings) -> tuple[dict[str, Any], list[int]]:
    """Settings of a scheduler with betas, and the zero-based levels of the sampler, decreasing.

    Raises:
        ValueError: if the scheduler has no spacing of these levels.
    """
    process, count = denoiser.process, denoiser.process.levels
    real = sampler.timesteps(denoiser) * count - 1
    levels = [round(level) for level in real.tolist()]
    named = {name: [level(i, len(levels), count) for i in range(len(levels))] for name, level in spacings.items()}
    spacing = next((name for name, wanted in named.items() if wanted == levels), None)
    if spacing is None or (real - torch.tensor(levels)).abs().max() > 1e-6:
        allowed = ", ".join(spacings)
        raise ValueError(f"no such timesteps: choose sampler.spacing={allowed}, with steps that divide {count} levels")
    abar = process.alpha(torch.arange(count + 1, dtype=torch.float64) / count) ** 2
    return {
        "num_train_timesteps": count,
        "trained_betas": (1 - abar[1:] / abar[:-1]).tolist(),
        "prediction_type": PREDICTIONS[denoiser.parameterization.output],
        "timestep_spacing": spacing,
    }, levels


Spacings = dict[str, Callable[[int, int, int], int]]
"""Name -> (i, steps, number of levels) -> the zero-based level of step i."""

SPACINGS: Spacings = {
    "leading": lambda i, steps, count: (steps - 1 - i) * (count // steps),
    "trailing": lambda i, steps, count: round(count - i * count / steps) - 1,
    "linspace": lambda i, steps, count: round((steps - 1 - i) * (count - 1) / max(steps - 1, 1)),
}
OF_DPM_SOLVER: Spacings = {
    "leading": lambda i, steps, count: (steps - i) * (count // (steps + 1)),
    "trailing": SPACINGS["trailing"],
    "linspace": lambda i, steps, count: round((steps - i) * (count - 1) / steps),
}


def ancestral(denoiser: Denoiser, sampler: Sampler) -> Pipeline:
    settings, levels = betas(denoiser, sampler, SPACINGS)
    variance = sampler.predictor.variance
    if levels[-1] and variance != "fixed_small":
        raise ValueError(
            f"no scheduler with variance={variance} whose last step has no noise: use sampler.spacing=linspace"
        )
    settings |= {"variance_type": variance, "clip_sample": sampler.clip}
    return Pipeline("DDPMPipeline", "DDPMScheduler", settings, {"num_inference_steps": len(levels)})


def ddim(denoiser: Denoiser, sampler: Sampler) -> Pipeline:
    settings, levels = betas(denoiser, sampler, {k: v for k, v in SPACINGS.items() if k != "linspace"})
    stride = denoiser.process.levels // len(levels)
    if any(late - early != stride for late, early in zip(levels, [*levels[1:], levels[-1] - stride], strict=True)):
        raise ValueError(f"no DDIM with {len(levels)} steps, which do not divide {denoiser.process.levels} levels")
    call: dict[str, Any] = {"num_inference_steps": len(levels)}
    call |= {"eta": sampler.predictor.eta} if sampler.predictor.eta else {}
    call |= {"use_clipped_model_output": True} if sampler.clip else {}
    return Pipeline("DDIMPipeline", "DDIMScheduler", settings | {"clip_sample": sampler.clip}, call)


def dpm_solver(denoiser: Denoiser, sampler: Sampler) -> Pipeline:
    refuse_clip(sampler)
    settings, levels = betas(denoiser, sampler, OF_DPM_SOLVER)
    settings |= {**multistep(sampler), "lambda_min_clipped": -1e9}
    return Pipeline("DDPMPipeline", "DPMSolverMultistepScheduler", settings, {"num_inference_steps": len(levels)})


def multistep(sampler: Sampler) -> dict[str, Any]:
    """Settings of DPM-Solver++ in multistep form."""
    step = sampler.predictor
    if step.order > 2 or step.predicts != "x0":
        raise ValueError(f"no such DPM-Solver of order={step.order} with predicts={step.predicts}: use 2 and x0")
    algorithm = "sde-dpmsolver++" if step.stochastic else "dpmsolver++"
    return {"algorithm_type": algorithm, "solver_order": step.order, "solver_type": "midpoint"}


def flow_euler(denoiser: Denoiser, sampler: Sampler) -> Pipeline:
    refuse_clip(sampler)
    times, steps = sampler.timesteps(denoiser), len(sampler.timesteps(denoiser))
    even = torch.linspace(1, times[-1].item(), steps, dtype=torch.float64)
    if sampler.predictor.eta or steps < 2 or not torch.allclose(times, even, rtol=0, atol=1e-9):
        raise ValueError("no such steps of flow matching: use sampler=flow_euler with spacing=trailing")
    settings = {"num_train_timesteps": 999, "shift_terminal": times[-1].item()}
    return Pipeline("DDPMPipeline", "FlowMatchEulerDiscreteScheduler", settings, {"num_inference_steps": steps})


def edm_euler(denoiser: Denoiser, sampler: Sampler) -> Pipeline:
    if sampler.predictor.order != 1 or sampler.predictor.churn:
        raise ValueError("no scheduler for Heun's method with EDM's preconditioning, or for churn: use sampler=euler")
    return of_edm("EDMEulerScheduler", denoiser, sampler)


def edm_dpm_solver(denoiser: Denoiser, sampler: Sampler) -> Pipeline:
    return of_edm("EDMDPMSolverMultistepScheduler", denoiser, sampler, multistep(sampler))


def of_edm(scheduler: str, denoiser: Denoiser, sampler: Sampler, more: dict[str, Any] | None = None) -> Pipeline:
    refuse_clip(sampler)
    if sampler.spacing != "karras":
        raise ValueError(f"no EDM scheduler with sampler.spacing={sampler.spacing}: use karras")
    sigmas = denoiser.process.sigma(sampler.timesteps(denoiser))
    settings = {
        "sigma_min": sigmas[-1].item(),
        "sigma_max": sigmas[0].item(),
        "sigma_data": denoiser.parameterization.sigma_data or 1.0,
        "rho": sampler.rho,
        **(more or {}),
    }
    differs = "It starts from noise of standard deviation sqrt(sigma_max^2 + 1), where ours has sigma_max."
    return Pipeline(LABELLED, scheduler, settings, {"num_inference_steps": len(sigmas)}, differs)


def predictor_corrector(denoiser: Denoiser, sampler: Sampler) -> Pipeline:
    refuse_clip(sampler)
    corrector, schedule = sampler.corrector, denoiser.process.schedule
    if corrector.norm != "batch" or sampler.predictor.probability_flow or sampler.spacing != "uniform":
        raise ValueError(
            "no such predictor-corrector sampler: set sampler.corrector.norm=batch, sampler.spacing=uniform"
        )
    times = sampler.timesteps(denoiser)
    settings = {
        "num_train_timesteps": len(times),
        "snr": corrector.snr,
        "correct_steps": corrector.steps,
        "sigma_min": schedule.sigma_min,
        "sigma_max": schedule.sigma_max,
        "sampling_eps": times[-1].item(),
    }
    differs = "Its noise levels lie within 1e-4 of ours, relatively, and so do its images."
    return Pipeline(SCORE, "ScoreSdeVeScheduler", settings, {"num_inference_steps": len(times)}, differs)


def refuse_clip(sampler: Sampler) -> None:
    if sampler.clip:
        raise ValueError("no such scheduler that clips x_0: set sampler.clip=false")


ROWS: dict[tuple[str | type, ...], Callable[[Denoiser, Sampler], Pipeline]] = {
    ("betas", Ancestral): ancestral,
    ("betas", DDIM): ddim,
    ("betas", DPMSolver): dpm_solver,
    ("straight", DDIM): flow_euler,
    ("edm", EDM): edm_euler,
    ("edm", DPMSolver): edm_dpm_solver,
    ("score", ReverseDiffusion, Langevin): predictor_corrector,
}
"""(process, predictor and corrector of our sampler) -> the pipeline."""
