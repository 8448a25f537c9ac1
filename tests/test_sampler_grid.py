"""Where a sampler starts and ends: the noise that x starts with is the noise of the grid's first time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lab.config.compose import CONF, composed, options, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import (
    VE,
    VP,
    Cosine,
    DiscreteProcess,
    Geometric,
    Linear,
    Sigmoid,
    SingleLevel,
    Spacing,
    SubVP,
)
from diffusion_lab.process.base import EvenSpacing
from diffusion_lab.sampler import DDIM, EDM, AnnealedLangevin, ProbabilityFlow, Sampler
from diffusion_lab.verification import mixture
from diffusion_lab.verification.mixture import exact_denoiser

PROCESSES = {
    "linear": lambda: DiscreteProcess(Linear(), 1000),
    "cosine": lambda: DiscreteProcess(Cosine(), 200),
    "sigmoid": lambda: DiscreteProcess(Sigmoid(), 300),
    "ncsn": lambda: DiscreteProcess(Geometric(0.01, 1.0), 10),
    "ncsnv2": lambda: DiscreteProcess(Geometric(0.01, 50.0), 232),
    "ve_discrete": lambda: DiscreteProcess(Geometric(0.01, 50.0), 1000),
    "vp": lambda: VP(Linear()),
    "vp cosine": lambda: VP(Cosine()),
    "subvp": lambda: SubVP(Linear()),
    "ve": lambda: VE(Geometric(0.01, 50.0)),
}
STEPS = (1, 2, 3, 7, 10, 50, 200, None)


def row_of(process):
    return Parameterization(c_noise="level" if process.levels else "time_999")


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_the_first_time_of_every_grid_has_the_noise_of_the_prior(process, spacing):
    """Or the grid is refused; where a beta schedule leaves out its last levels, the user is told what signal is left."""
    denoiser = Denoiser(None, PROCESSES[process](), row_of(PROCESSES[process]()))
    process, taken = denoiser.process, 0
    for steps in STEPS:
        sampler = Sampler(DDIM(), None, steps, spacing)
        try:
            times = sampler.check(denoiser)
        except ValueError as error:
            one_is_the_lowest = steps == 1 and spacing != "trailing"
            too_many = process.levels and steps and steps > process.levels
            if not (one_is_the_lowest or too_many or spacing in ("leading", "strided")):
                raise AssertionError(f"{steps} steps are refused") from error
            continue
        taken += 1
        alpha, sigma = (k.item() for k in process.alpha_sigma(times[0]))
        assert (times.diff() <= 0).all() and times[0] <= 1 and times[-1] >= process.t_min * (1 - 1e-12)
        assert steps is None or len(times) == steps
        if (
            process.keeps_signal
            or spacing not in ("uniform", "quadratic", "leading", "strided")
            or process.levels is None
        ):
            assert times[0] == 1 and sigma == pytest.approx(process.prior_std, rel=1e-3)
        assert sigma > 0.7 * process.prior_std
        assert (sampler.caution(denoiser) is None) == (process.keeps_signal or alpha < 0.05 * sigma)
    assert taken or (spacing in ("leading", "strided") and (process.keeps_signal or process.levels is None))


@pytest.mark.parametrize("process", ["ncsn", "ncsnv2", "ve_discrete", "ve"])
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "trailing", "linspace"])
def test_ddim_keeps_the_variance_of_gaussian_data_for_every_spacing(process, spacing):
    """With a network that knows data of variance s^2, each step of DDIM multiplies x by a known factor."""
    process, s = PROCESSES[process](), 0.5
    steps = 10 if process.levels == 10 else 200

    class Exact:
        def __call__(self, x, level):
            t = level[:1].double()
            sigma = process.sigma((t + 1) / process.levels if process.levels else t / 999)
            return x * (sigma / (s**2 + sigma**2)).to(x)

    denoiser = Denoiser(Exact(), process, row_of(process))
    sampler = Sampler(DDIM(), None, steps, spacing, precision="float64")
    x = sampler(denoiser, (20_000, 2), torch.Generator().manual_seed(0))
    # Starting without the data's own variance, and steps of some length, cost this much; the wrong start cost 28 times.
    assert 0.5 * s**2 < x.var().item() < 1.5 * s**2


def test_the_spacings_of_discrete_levels_are_those_of_lin_et_al_table_2():
    """Ten of a thousand levels, one-based as there."""
    ladder = DiscreteProcess(Linear())
    want = {
        "leading": [1, 101, 201, 301, 401, 501, 601, 701, 801, 901],
        "linspace": [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000],
        "trailing": [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
    }
    for spacing, levels in want.items():
        assert ladder.level(ladder.timesteps(10, spacing)).flip(0).tolist() == levels
    assert ladder.level(ladder.timesteps(7, "leading")).flip(0).tolist() == [1 + 142 * i for i in range(7)]
    assert VP(Linear()).timesteps(4, "trailing").tolist() == pytest.approx([1 - i * 0.999 / 4 for i in range(4)])
    with pytest.raises(ValueError, match="leading starts below the noise level of the prior"):
        DiscreteProcess(Geometric(), 10).timesteps(5, "leading")
    with pytest.raises(ValueError, match="needs a process with discrete levels"):
        VP(Linear()).timesteps(5, "leading")


def test_respacing_is_improved_diffusions():
    """space_timesteps(N, "ddim50") and space_timesteps(N, "10,15,20"), written down by hand; zero-based as there."""
    taken = lambda ladder, **settings: (  # noqa: E731
        (ladder.level(Sampler(DDIM(), **settings).check(Denoiser(None, ladder, Parameterization()))) - 1)
        .flip(0)
        .tolist()
    )
    for steps, last, stride in ((50, 980, 20), (7, 858, 143), (250, 996, 4), (1000, 999, 1)):
        assert taken(DiscreteProcess(Linear()), steps=steps, spacing="strided") == list(range(0, last + 1, stride))
    with pytest.raises(ValueError, match="no integer stride selects 300 of 1000 levels"):
        taken(DiscreteProcess(Linear()), steps=300, spacing="strided")
    # 10 levels in parts of 4, 3 and 3; in one part, every 9/4-th, rounded.
    assert taken(DiscreteProcess(Cosine(), 10), spacing="sections", sections=[2, 1, 3]) == [0, 3, 4, 7, 8, 9]
    assert taken(DiscreteProcess(Cosine(), 10), spacing="sections", sections=[5]) == [0, 2, 4, 7, 9]
    assert taken(DiscreteProcess(Linear()), spacing="sections", sections=[3, 2]) == [0, 250, 499, 500, 999]
    for settings, message in (
        ({"sections": [4, 4, 4]}, "4 of the 3 levels from 5 to 7"), ({"sections": [4, 0]}, "elements are at least 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            taken(DiscreteProcess(Cosine(), 10), spacing="sections", **settings)
    with pytest.raises(ValueError, match="this process has none"):
        Sampler(DDIM(), spacing="sections", sections=[3]).check(Denoiser(None, VP(Linear()), Parameterization()))
    with pytest.raises(ValueError, match="sampler.sections and sampler.spacing=sections go together"):
        Sampler(DDIM(), sections=[3])


def test_the_continuous_quadratic_grid_is_dpm_solvers():
    """torch.linspace(t_T ** 0.5, t_0 ** 0.5, N + 1).pow(2) of the official program."""
    for process in (VP(Linear()), VE(Geometric())):
        want = torch.linspace(1, process.t_min**0.5, 12, dtype=torch.float64).pow(2)
        torch.testing.assert_close(process.timesteps(12, "quadratic"), want, rtol=1e-9, atol=1e-12)


def test_few_steps_on_a_cosine_say_how_much_signal_is_left_and_trailing_helps():
    denoiser = Denoiser(None, DiscreteProcess(Cosine()), Parameterization())
    said = Sampler(DDIM(), steps=10).caution(denoiser)
    assert (
        "keeps alpha = 0.15 of the signal" in said
        and "sampler.spacing=trailing starts at t = 1 (" in said
        and "\n" not in said
    )
    for settings in ({"steps": 10, "spacing": "trailing"}, {"steps": None}, {"steps": 10, "start": "uniform"}):
        assert Sampler(DDIM(), **settings).caution(denoiser) is None
    weak = Denoiser(None, DiscreteProcess(Linear(0.1, 2.0)), Parameterization())
    assert "the schedule has no more noise" in Sampler(DDIM(), steps=5, spacing="trailing").caution(weak)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_a_sampler_starts_and_ends_where_it_is_told(process, spacing):
    process = PROCESSES[process]()
    start, end = (0.9, 0.2) if process.levels == 10 else (0.75, 0.1)
    try:
        times = process.timesteps(5, spacing, t_start=start, t_end=end)
    except ValueError:
        assert spacing in ("leading", "strided")
        return
    assert len(times) == 5 and times[0] <= start + 1e-12 and times[-1] >= end - 1e-12
    if spacing != "trailing":
        end = math.ceil(process.levels * end - 1e-9) / process.levels if process.levels else end
        assert times[-1] == pytest.approx(end, abs=1e-9)
    if process.levels is None or spacing in ("trailing", "linspace", "linear", "log_snr", "karras"):
        assert times[0] == pytest.approx(start, abs=1e-9)
    if spacing in get_args(EvenSpacing) and process.levels:
        assert torch.equal(process.level(times), process.level(times).round())


def test_noise_starts_with_the_share_that_t_start_has():
    process = VE(Geometric(0.01, 50.0))
    denoiser, t = Denoiser(None, process, row_of(process)), torch.tensor(0.6, dtype=torch.float64)
    for sampler in (Sampler(DDIM(), steps=5, t_start=0.6), ProbabilityFlow(t_start=0.6)):
        x = sampler.prior(denoiser, (20_000, 2), torch.Generator().manual_seed(0))
        assert x.std().item() == pytest.approx(process.sigma(t).item(), rel=0.02)
        assert sampler.check(denoiser)[0] == 0.6


@pytest.mark.parametrize("process", [VP(Linear()), VE(Geometric()), DiscreteProcess(Linear(), 50)])
@pytest.mark.parametrize("ends", [(1.1, None), (None, 0.0), (0.3, 0.5), (0.3, 0.3)])
def test_times_out_of_range_are_refused(process, ends):
    denoiser = Denoiser(None, process, row_of(process))
    for make in (
        lambda: Sampler(DDIM(), steps=5, t_start=ends[0], t_end=ends[1]),
        lambda: ProbabilityFlow(t_start=ends[0], t_end=ends[1]),
    ):
        with pytest.raises(ValueError, match=r"must satisfy|must be in \(0, 1\]"):
            make().check(denoiser)


def test_the_last_time_may_be_earlier_than_the_process_has_by_default():
    """Down to the first time of training, which is 1e-5 for VP, whose samplers end at 1e-3."""
    assert VP(Linear()).timesteps(5, t_end=1e-5)[-1] == 1e-5
    with pytest.raises(ValueError, match="1e-05 <= t_end"):
        VP(Linear()).timesteps(5, t_end=1e-6)


def test_a_single_level_is_for_langevin_dynamics():
    denoiser = Denoiser(None, SingleLevel(0.1, 2.0), Parameterization(c_noise="nothing"))
    for predictor in (DDIM(), EDM(2)):
        with pytest.raises(ValueError, match="use sampler=langevin"):
            Sampler(predictor).check(denoiser)
    assert Sampler(None, AnnealedLangevin(1e-3), 1).check(denoiser).tolist() == [1]


NAMES = [name for name in options("sampler") if name not in ("trained", "custom")]
"""Every sampler of the configuration."""


@pytest.mark.parametrize("sde", ["linear", "ncsnv2", "vp", "subvp", "ve"])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_in_any_batch(sde, name):
    """Image i depends on its own noise alone; of an ODE's, whose steps are common to a batch, to the tolerance."""
    denoiser = exact_denoiser(mixture.gmm2d(), PROCESSES[sde]())
    settings = plain(composed("train", [f"sampler={name}", "data=toy2d"]))["sampler"]
    sampler = instantiate(settings | {"precision": "float64"}, "sampler")
    sampler.steps = sampler.steps and min(sampler.steps, 30) if name != "langevin" else 1
    sampler.steps = 40 if sampler.steps is None and name != "ode" else sampler.steps
    if sampler.__dict__.get("corrector"):
        annealed = {"step_size": None, "snr": 0.1} if hasattr(sampler.corrector, "step_size") else {}
        sampler.corrector = replace(sampler.corrector, steps=2, **annealed)

    def draw(indices):
        return sampler(denoiser, (len(indices), 2, 1, 1), image_generators(3, indices))

    whole, tolerance = draw(range(5)), 1e-3 if name == "ode" else 1e-9
    torch.testing.assert_close(draw(range(2)), whole[:2], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(draw([4]), whole[4:], rtol=tolerance, atol=tolerance)


def test_published_recipes_average_the_norms_of_langevin_steps_and_say_so():
    published = [
        ["model=score_sde", f"sde={sde}", f"data={data}"]
        for sde in ("ve", "ve_discrete")
        for data in ("cifar10", "celeba")
    ]
    published += [
        [f"experiment=score_sde/{row}"] for row in ("ncsnpp", "ncsnpp_continuous", "ncsnpp_deep_continuous", "ve_ddpm")
    ]
    table1 = [
        path for path in (CONF / "experiment/score_sde/table1").glob("*.yaml") if "corrector:" in path.read_text()
    ]
    published += [[f"experiment=score_sde/table1/{path.stem}"] for path in table1]
    assert len(table1) == 8
    for words in published:
        corrector = plain(composed("train", words))["sampler"]["corrector"]
        assert corrector["_target_"].endswith(".Langevin") and corrector["norm"] == "batch", words
    for words in (["model=score_sde", "sde=ve"], ["model=score_sde", "sde=ve", "data=toy2d"], ["sampler=pc"]):
        assert plain(composed("train", words))["sampler"]["corrector"]["norm"] == "image", words
    assert OmegaConf.load(CONF / "sampler/corrector/langevin.yaml").norm == "image"
    assert math.isclose(OmegaConf.load(CONF / "sampler/corrector/langevin.yaml").snr, 0.16)
