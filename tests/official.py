"""The keys of the official configurations of NCSN, NCSNv2, DDIM and ScoreSDE in the words of conf/."""

from __future__ import annotations

import math
from typing import Any


def kind(node: dict[str, Any] | None) -> str:
    """The class that a node names."""
    return (node or {}).get("_target_", "none").rpartition(".")[2]


def at(c: dict[str, Any], path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for key in path.split("."):
        c = (c or {}).get(key)
    return c


def levels(c: dict[str, Any]) -> int | None:
    return at(c, "model.levels") or at(c, "model.process.levels")


def low(c: dict[str, Any]) -> float:
    """The lower end of the images' range, which the classes of NCSN and DDPM hold themselves."""
    return {"DDPM": -1.0, "NCSN": 0.0, "NCSNv2": 0.0}.get(kind(c["model"]), at(c, "model.low"))


def snr(c: dict[str, Any]) -> float | None:
    """Of annealed Langevin steps sqrt(step_size / 2) / sigma_min, to the three digits of the official ones."""
    step = at(c, "sampler.corrector.step_size")
    return (
        at(c, "sampler.corrector.snr") if step is None else round(math.sqrt(step / 2) / c["schedule"]["sigma_min"], 3)
    )


def sde(c: dict[str, Any]) -> str:
    names = {"Geometric": "vesde", "Linear": "subvpsde" if kind(at(c, "model.process")) == "SubVP" else "vpsde"}
    return names[kind(c["schedule"])]


def network(c: dict[str, Any]) -> str:
    names = {"NCSNpp": "ncsnpp", ("UNet", "last"): "ddpm", ("UNet", "every"): "simple"}
    names |= {("RefineNet", "average"): "ncsn", ("RefineNet", "max"): "ncsnv2_64"}
    node = c["network"]
    return names.get(kind(node)) or names[kind(node), node.get("up_attention") or node.get("pool")]


PREDICTORS = {
    "Ancestral": "ancestral_sampling",
    "ReverseDiffusion": "reverse_diffusion",
    "EulerMaruyama": "euler_maruyama",
}
CORRECTORS = {"Langevin": "langevin", "AnnealedLangevin": "ald"}
NCSNPP = ("conditional", "fir", "fourier_scale", "init_scale", "progressive", "progressive_combine", "progressive_input",
          "resamp_with_conv", "resblock_type", "skip_rescale")  # fmt: skip
MEANING = {  # official key -> the same here, by its path or as computed
    "data.centered": lambda c: low(c) == -1,
    "data.rescaled": lambda c: low(c) == -1,
    "data.dataset": lambda c: kind(c["data"]),
    "data.image_size": lambda c: c["data"]["shape"][1],
    "data.num_channels": lambda c: c["data"]["shape"][0],
    "data.channels": lambda c: c["data"]["shape"][0],
    "data.random_flip": "data.flip",
    "data.uniform_dequantization": "model.dequantize",
    "diffusion.beta_start": lambda c: c["schedule"]["beta_min"] / 1000,
    "diffusion.beta_end": lambda c: c["schedule"]["beta_max"] / 1000,
    "diffusion.beta_schedule": lambda c: kind(c["schedule"]).lower(),
    "diffusion.num_diffusion_timesteps": levels,
    "eval.num_samples": "metric.samples",
    "model.attn_resolutions": "network.attention",
    "model.beta_max": "schedule.beta_max",
    "model.beta_min": "schedule.beta_min",
    "model.ch": "network.channels",
    "model.ch_mult": "network.multipliers",
    "model.dropout": "network.dropout",
    "model.ema_rate": "callback.ema.decay",
    "model.embedding_type": "network.embedding",
    "model.in_channels": "network.in_channels",
    "model.out_ch": lambda c: at(c, "network.out_channels") or at(c, "network.in_channels"),
    "model.name": network,
    "model.type": network,
    "model.nf": "network.channels",
    "model.ngf": "network.channels",
    "model.num_classes": levels,
    "model.num_res_blocks": "network.blocks",
    "model.num_scales": lambda c: levels(c) or at(c, "sampler.steps") or 1000,
    "model.scale_by_sigma": lambda c: kind(c["model"]) == "NCSNv2" or at(c, "model.output") == "scaled_score",
    "model.sigma_begin": "schedule.sigma_max",
    "model.sigma_dist": lambda c: kind(c["schedule"]).lower(),
    "model.sigma_end": "schedule.sigma_min",
    "model.sigma_max": "schedule.sigma_max",
    "model.sigma_min": "schedule.sigma_min",
    "model.var_type": lambda c: c["variance"].replace("_", ""),
    **{f"model.{key}": f"network.{key}" for key in NCSNPP},
    "optim.beta1": lambda c: c["optimizer"]["betas"][0],
    "optim.eps": "optimizer.eps",
    "optim.grad_clip": lambda c: at(c, "trainer.gradient_clip_val") or -1.0,
    "optim.lr": "optimizer.lr",
    "optim.optimizer": lambda c: kind(c["optimizer"]),
    "optim.warmup": "warmup_steps",
    "optim.weight_decay": "optimizer.weight_decay",
    "sampling.corrector": lambda c: CORRECTORS.get(kind(c["sampler"].get("corrector")), "none"),
    "sampling.denoise": "sampler.denoise",
    "sampling.n_steps_each": "sampler.corrector.steps",
    "sampling.noise_removal": "sampler.denoise",
    "sampling.predictor": lambda c: PREDICTORS.get(kind(c["sampler"].get("predictor")), "none"),
    "sampling.probability_flow": lambda c: bool(at(c, "sampler.predictor.probability_flow")),
    "sampling.snr": snr,
    "sampling.step_lr": "sampler.corrector.step_size",
    "training.anneal_power": lambda c: {"half_sum": 2.0}[c["loss"]["reduction"]],
    "training.batch_size": "data.batch_size",
    "training.continuous": lambda c: levels(c) is None,
    "training.likelihood_weighting": lambda c: c["loss"]["weighting"] == "likelihood",
    "training.n_iters": "trainer.max_steps",
    "training.reduce_mean": lambda c: c["loss"]["reduction"] == "mean",
    "training.sde": sde,
    "training.snapshot_freq": "callback.checkpoint.every_n_steps",
}

NO_CHOICE = {  # official group -> keys with one value here, and those that say how the program is run
    "data": "logit_transform gaussian_dequantization num_workers",
    "model": "nonlinearity normalization attention_type conv_size fir_kernel interpolation spec_norm batch_norm ema",
    "optim": "amsgrad",
    "training": "algo ngpu n_epochs eval_freq log_freq log_all_sigmas validation_freq snapshot_sampling"
    " snapshot_freq_for_preemption",
    "sampling": "method batch_size ckpt_id data_init fid final_only inpainting interpolation last_only n_interpolations"
    " num_samples4fid",
    "eval": "batch_size begin_ckpt end_ckpt bpd_dataset enable_bpd enable_loss enable_sampling",
    "test": "batch_size begin_ckpt end_ckpt",
    "fast_fid": "batch_size begin_ckpt end_ckpt ensemble n_steps_each num_samples step_lr verbose",
}


def without_meaning(theirs: str, c: dict[str, Any]) -> set[str]:
    """The keys of the official configuration `theirs` that the experiment composed to `c` need not answer for."""
    keys = {"seed", *(f"{group}.{key}" for group, names in NO_CHOICE.items() for key in names.split())}
    reasons = [
        ("VE has no betas", sde(c) == "vesde", "model.beta_min model.beta_max"),
        ("VP has no sigmas", sde(c) != "vesde", "model.sigma_min model.sigma_max"),
        ("no corrector", not c["sampler"].get("corrector"), "sampling.snr sampling.n_steps_each"),
        ("of NCSN++", kind(c["network"]) != "NCSNpp", "model.embedding_type model.resamp_with_conv model.conditional"),
        ("has no dropout", kind(c["network"]) == "RefineNet", "model.dropout"),
        ("of predictors", not c["sampler"].get("predictor"), "sampling.noise_removal sampling.probability_flow"),
        (
            "otherwise in NCSN's and NCSNv2's own programs",
            theirs.startswith("score_sde:ve.ncsn"),
            "training.n_iters training.snapshot_freq data.uniform_dequantization",
        ),
        (
            "shipped for MNIST",
            theirs == "ncsn:anneal",
            "data.channels data.dataset data.image_size data.random_flip model.ngf",
        ),
        ("of no use but for sampling", theirs == "ddim:cifar10", "training.n_iters training.snapshot_freq"),
    ]
    return keys.union(*(names.split() for _, applies, names in reasons if applies))


def flat(node: dict[str, Any], path: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted path."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return leaves
