"""Records k_diffusion.npz and diffusers.npz: other people's samplers on the exact denoiser of `mixture.gmm2d`.

Their functions run as they are, in float64, with recorded noise.  diffusers makes its tables in float32; here the two
names `torch.float32` and `numpy.float32` mean float64, and nothing else is changed.

    pip install --no-deps --target ORACLE k-diffusion torchdiffeq torchsde trampoline diffusers
    PYTHONPATH=ORACLE python tests/reference/record_samplers.py
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import types
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
torch.float32, np.float32 = torch.float64, np.float64
warnings.simplefilter("ignore")

from diffusion_lab.verification import mixture  # noqa: E402

TARGET, SHAPE = mixture.gmm2d(), (3, 2, 1, 1)
START = torch.as_tensor(np.random.RandomState(91).randn(*SHAPE))
NOISE = torch.as_tensor(np.random.RandomState(92).randn(40, *SHAPE))


def save(name: str, packages: list[str], about: str, samples: dict[str, torch.Tensor], **meta) -> None:
    """All samples as one array (a hundred small ones take more room), their names in the description."""
    meta = {
        "about": about,
        "recorded_by": "tests/reference/record_samplers.py",
        "versions": {one: version(one) for one in [*packages, "torch", "numpy", "scipy"]},
        "inputs": "x at the first time = std RandomState(91).randn(3, 2, 1, 1); noise, in the order in which it is "
        "used, RandomState(92).randn(40, 3, 2, 1, 1)",
        "target": "analytic.gmm2d",
        "names": list(samples),
        **meta,
    }
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez_compressed(HERE / f"{name}.npz", _meta=text, samples=torch.stack(list(samples.values())).numpy())
    print(f"{name}: {len(samples)} samples, {(HERE / f'{name}.npz').stat().st_size} bytes")


# k-diffusion and torchdiffeq, in y = x_0 + n eps


def k_diffusion():
    """k_diffusion.sampling, without what its package imports for training."""
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = list(importlib.util.find_spec("k_diffusion").submodule_search_locations)
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.dim())]
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    import k_diffusion.sampling

    return k_diffusion.sampling


def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x_0 | x], EDM's D(x; sigma)."""
    return TARGET.denoise(x, torch.ones_like(sigma), sigma)


class Brownian:
    """Increments, over the root of their length, of one Brownian motion in sigma that the noise is made of.

    An interval that begins where the last one began, and is longer, contains it.
    """

    def __init__(self) -> None:
        self.fresh, self.last = iter(NOISE), None

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        if self.last is None or abs(self.last[0] / sigma - 1) > 1e-9:
            self.last = sigma, sigma_next, next(self.fresh)
            return self.last[2]
        share = (sigma - self.last[1]) / (sigma - sigma_next)
        z, self.last = share.sqrt() * self.last[2] + (1 - share).sqrt() * next(self.fresh), None
        return z


def record_k_diffusion() -> None:
    sampling = k_diffusion()
    steps, high, low = 10, 20.0 ** (1 / 7), 0.01 ** (1 / 7)
    grid = (high + torch.arange(steps, dtype=torch.float64) / (steps - 1) * (low - high)) ** 7
    sigmas, x = torch.cat([grid, torch.zeros(1, dtype=torch.float64)]), 20 * START
    arrays = {}

    def run(name: str, function, sigmas=sigmas, noise: str | None = None, **settings) -> None:
        fresh = iter(NOISE)
        if noise == "noise_sampler":
            settings["noise_sampler"] = lambda *_: next(fresh)
        if noise == "brownian":
            settings["noise_sampler"] = Brownian()
        if noise == "randn_like":  # drawn at every step, used where there is churn
            used = iter([settings["s_tmin"] <= s <= settings["s_tmax"] for s in sigmas])
            torch.randn_like = lambda x: next(fresh) if next(used) else torch.zeros_like(x)
        arrays[name] = function(model, x, sigmas, disable=True, **settings)

    churn = {"s_churn": 2.0, "s_tmin": 0.05, "s_tmax": 15.0, "s_noise": 1.003}
    run("euler", sampling.sample_euler)
    run("heun", sampling.sample_heun)
    run("dpm_2", sampling.sample_dpm_2)
    plain = torch.randn_like
    run("euler.churn", sampling.sample_euler, noise="randn_like", **churn)
    run("heun.churn", sampling.sample_heun, noise="randn_like", **churn)
    torch.randn_like = plain
    for eta, s_noise in ((1.0, 1.0), (0.5, 1.0), (1.0, 1.01), (1.6, 1.0)):
        for name in ("euler_ancestral", "dpmpp_2s_ancestral"):
            function = getattr(sampling, f"sample_{name}")
            run(f"{name}.{eta}.{s_noise}", function, noise="noise_sampler", eta=eta, s_noise=s_noise)
    for eta, r in ((1.0, 0.5), (0.5, 0.5), (1.0, 0.3), (0.0, 0.5)):
        kind = "brownian" if eta else "noise_sampler"
        run(f"dpmpp_sde.{eta}.{r}", sampling.sample_dpmpp_sde, noise=kind, eta=eta, r=r, s_noise=1.01)
    for order in (1, 2, 3, 4):  # the program's last step, to sigma = 0, is left out
        run(f"lms.{order}", sampling.sample_lms, sigmas=grid, order=order)
    run("dpmpp_2m", sampling.sample_dpmpp_2m)
    for name in ("dpmpp_2m_sde", "dpmpp_3m_sde"):
        run(name, getattr(sampling, f"sample_{name}"), noise="noise_sampler")

    solver = sampling.DPMSolver(model)
    for order in (1, 2, 3):
        y = x
        for t, s in itertools.pairwise(-grid.log()):
            y, _ = getattr(solver, f"dpm_solver_{order}_step")(y, t, s)
        arrays[f"dpm_solver_{order}_step"] = y

    from torchdiffeq import odeint
    from torchdiffeq._impl.rk_common import rk4_step_func

    def eps(n: torch.Tensor, y: torch.Tensor, **_) -> torch.Tensor:
        return (y - model(y, n)) / n

    for method in ("midpoint", "heun2"):
        arrays[f"torchdiffeq.{method}"] = odeint(eps, x, grid, method=method)[-1]
    y = x
    for n, n_s in itertools.pairwise(grid):  # the classical method; torchdiffeq's "rk4" is the 3/8 rule
        y = y + rk4_step_func(eps, n, n_s - n, n_s, y)
    arrays["torchdiffeq.rk4"] = y
    about = (
        "samples after all steps of k_diffusion.sampling and torchdiffeq from sigmas[0] to 0 (lms, dpm_solver_*: to "
    )
    about += "sigmas[-1]), with std = 20"
    save("k_diffusion", ["k-diffusion", "torchdiffeq"], about, arrays, sigmas=grid.tolist())


# diffusers, on DDPM's levels: its timestep i is level i + 1


def record_diffusers() -> None:
    import diffusers
    import diffusers.schedulers as all_of

    arrays, levels = {}, {}

    def run(key: str, name: str, steps: int, cut: int = 0, lu: bool = False, x0: bool = False, **settings) -> None:
        """One trajectory, without its last `cut` steps; `key` is schedule.spacing.name....

        x0: its last prediction of x_0, for a last step of an order that cannot lead to sigma = 0.
        """
        schedule, spacing, *_ = key.split(".")
        betas = {"beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]}
        betas |= {"beta_start": 1e-4, "beta_end": 0.02}
        step = {one: settings.pop(one) for one in ("eta", "order") if one in settings}
        if not lu:
            settings["timestep_spacing"] = spacing
        scheduler = getattr(diffusers, name)(**betas, **settings)
        scheduler.set_timesteps(steps)
        abar, fresh = scheduler.alphas_cumprod, iter(NOISE)
        scaled = hasattr(scheduler, "init_noise_sigma") and scheduler.init_noise_sigma != 1.0
        times = scheduler.timesteps.tolist()
        assert all(t == round(t) for t in times), (key, times)
        if lu:  # even in lambda: the points of a singlestep solver of order 2 are halves
            ends = (((1 - abar) / abar).sqrt().log())[[-1, 0]]
            scheduler.sigmas = torch.linspace(*ends.tolist(), steps + 1, dtype=torch.float64).exp()
        x = START / (abar[-1] if lu else abar[int(times[0])]).sqrt() if scaled else START
        for module in vars(all_of).values():
            if hasattr(module, "randn_tensor"):
                module.randn_tensor = lambda *_, **__: next(fresh)
        kept = len(times) - cut
        for i, t in enumerate(times[:kept]):
            alpha = (1 / (1 + scheduler.sigmas[i] ** 2) if lu else abar[int(t)]).sqrt()
            output = TARGET.eps(scheduler.scale_model_input(x, t), alpha, (1 - alpha**2).sqrt())
            if x0 and i == len(times) - 1:
                x = scheduler.convert_model_output(output, sample=x)
            else:
                x = scheduler.step(output, scheduler.timesteps[i], x, **step).prev_sample
        if cut and scaled:
            x = x * abar[int(times[kept])].sqrt()
        assert x.dtype is torch.float64 and x.isfinite().all(), key
        arrays[key] = x
        levels[key] = [int(t) + 1 for t in dict.fromkeys(times)]

    spacings, schedules = ("linspace", "leading", "trailing"), ("linear", "cosine")
    exact = {"clip_sample": False}
    for schedule in schedules:
        for spacing in ("leading", "trailing"):  # with linspace, its step is not the one to the next timestep
            for eta in (0.0, 0.5, 1.0):
                run(f"{schedule}.{spacing}.ddim.{eta}", "DDIMScheduler", 10, eta=eta, **exact)
            run(f"{schedule}.{spacing}.pndm", "PNDMScheduler", 10, skip_prk_steps=True)
            for kind in ("fixed_small", "fixed_large"):
                run(f"{schedule}.{spacing}.ddpm.{kind}", "DDPMScheduler", 20, cut=1, variance_type=kind, **exact)
        for spacing in spacings:
            run(f"{schedule}.{spacing}.euler_ancestral", "EulerAncestralDiscreteScheduler", 10)
            run(f"{schedule}.{spacing}.heun", "HeunDiscreteScheduler", 10)
            for order in (1, 2, 3, 4) if schedule == "linear" else (4,):
                run(f"{schedule}.{spacing}.lms.{order}", "LMSDiscreteScheduler", 10, cut=1, order=order)
        for spacing, order in itertools.product(spacings, (1, 2, 3)):
            run(
                f"{schedule}.{spacing}.deis.{order}", "DEISMultistepScheduler", 12, solver_order=order,
                lower_order_final=False,
            )  # fmt: skip
            for lower in (False, True):
                run(
                    f"{schedule}.{spacing}.unipc.{order}.{lower}", "UniPCMultistepScheduler", 12, solver_order=order,
                    lower_order_final=lower, solver_type="bh1" if spacing == "trailing" and not lower else "bh2",
                    x0=not lower,
                )  # fmt: skip
                run(
                    f"{schedule}.{spacing}.dpmpp.{order}.{lower}", "DPMSolverMultistepScheduler", 12,
                    solver_order=order, lower_order_final=lower,
                )  # fmt: skip
            for lower in (False, True):
                run(
                    f"{schedule}.{spacing}.dpm.{order}.{lower}", "DPMSolverMultistepScheduler", 12,
                    algorithm_type="dpmsolver", solver_order=order, lower_order_final=lower,
                    final_sigmas_type="sigma_min",
                )  # fmt: skip
            if order < 3:  # of order 3 its program adds phi_2 / 2h + 1/2 of D_2 where its sign is minus
                run(
                    f"{schedule}.{spacing}.sde_dpmpp.{order}", "DPMSolverMultistepScheduler", 12,
                    algorithm_type="sde-dpmsolver++", solver_order=order, lower_order_final=False,
                )  # fmt: skip
        for kind in ("dpmsolver", "dpmsolver++"):
            for order in (1, 2):
                run(
                    f"{schedule}.linspace.lu_singlestep.{kind}.{order}",
                    "DPMSolverSinglestepScheduler", 12, lu=True, algorithm_type=kind, solver_order=order,
                    lower_order_final=False, final_sigmas_type="sigma_min",
                )  # fmt: skip
    about = "samples after all steps of diffusers' schedulers, or at the last of their timesteps; std = 1.  levels are "
    about += "DDPM's, in the order of the steps; lu_: 13 times even in log(sigma / alpha) from level 1000 to level 1"
    save("diffusers", ["diffusers"], about, arrays, levels=levels)


if __name__ == "__main__":
    record_k_diffusion()
    record_diffusers()
