"""conf/experiment: every row is built, takes two training steps and draws samples, small and on stand-ins for the data."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from experiment import NAMES, settings
from official import at, kind, levels, low, sde

from diffusion_lab import checkpoint
from diffusion_lab.callback import EMA, RankSeed
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.data import CIFAR10
from diffusion_lab.data.base import Splits
from diffusion_lab.data.batches import InMemory
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.model import Model
from diffusion_lab.run.train import set_up

REFERENCE = Path(__file__).parent / "reference"
FACTS = json.loads((REFERENCE / "constants.json").read_text())["facts"]
COUNTS = json.loads((REFERENCE / "param_counts.json").read_text())
SMALL = {
    "UNet": {"channels": 8, "groups": 4, "multipliers": [1, 1], "blocks": 1, "image_size": 16},
    "ADMUNet": {
        "channels": 8,
        "multipliers": [1, 1],
        "blocks": 1,
        "attention": [8],
        "head_channels": None,
        "image_size": 16,
    },
    "NCSNpp": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "image_size": 16},
    "RefineNet": {"channels": 4, "image_size": 16},
    "MLP": {"width": 8},
}


def shrunken(name: str) -> dict[str, Any]:
    """The settings of an experiment with a small network, small data, two steps and nothing said or drawn."""
    c = settings(name)
    network, data = c["model"]["network"], c["data"]
    data["pairs"] = None
    network |= SMALL[kind(network)]
    if kind(data) == "ImageFolder":
        data = c["data"] = {"_target_": "diffusion_lab.data.CIFAR10", "data_dir": "."}
    if kind(data) == "CIFAR10":
        c["model"]["shape"] = data["shape"] = [3, 16, 16]
        data["batch_size"] = 8
    else:
        data |= {"train_size": 64, "held_out_size": 64, "batch_size": 8, "eval_batch_size": 64}
    c["trainer"] |= {"max_steps": 2, "accelerator": "cpu", "val_check_interval": None}
    c["callback"]["evaluation"]["evaluator"]["features"] = None
    c["choices"] = {"data": "stand-in", "sampler": "its own"}
    return c


def sampler_apart(c: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(the settings that training depends on, as a key; the sampler's settings)."""
    sampler = c["model"]["sampler"]
    kept = {key: c[key] for key in ("data", "trainer", "callback", "choices")}
    return json.dumps({**kept, "model": {**c["model"], "sampler": None}}, sort_keys=True), sampler


@pytest.fixture(scope="module", autouse=True)
def stand_in():
    """CIFAR-10 without its files: 32 random images; and a teacher without its checkpoint."""

    def load(self: CIFAR10) -> Splits:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (32, *self.shape), dtype=torch.uint8, generator=generator)
        part = InMemory(images, torch.zeros(32, dtype=torch.int64))
        return Splits(part, part, "stand-in")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "prepare_data", lambda self: None)
        patch.setattr(CIFAR10, "load", load)
        teacher = functools.partial(instantiate, shrunken("consistency/ct")["model"], "model")
        patch.setattr(checkpoint, "load", lambda path, weights: teacher())
        yield
    trained.cache_clear()


@functools.cache
def trained(key: str, sampler: str) -> tuple[Model, pl.Trainer, list[torch.Tensor]]:
    """A model after two steps, its trainer, and the parameters of before; rows that differ in their sampler share it."""
    c = json.loads(key)
    c["sampler"] = c["model"]["sampler"] = json.loads(sampler)
    torch.manual_seed(0)
    data, model, trainer = set_up(c, Path("."))
    trainer.callbacks = [callback for callback in trainer.callbacks if isinstance(callback, EMA | RankSeed)]
    before = [p.detach().clone() for p in model.network.parameters()]
    trainer.fit(model, datamodule=data)
    return model, trainer, before


@functools.cache
def row(name: str) -> tuple[dict[str, Any], Model, pl.Trainer, list[torch.Tensor]]:
    key, sampler = sampler_apart(shrunken(name))
    return settings(name), *trained(key, FIRST_SAMPLER.setdefault(key, json.dumps(sampler)))


FIRST_SAMPLER: dict[str, str] = {}
# Of the others see test_classifier, test_contrastive, test_iddpm, test_edm, test_consistency, and below for flow.
SAMPLED = [name for name in NAMES if name != "adm/classifier" and not name.startswith("energy")]
PUBLISHED = [
    name for name in NAMES if not name.startswith(("pitfalls", "energy", "iddpm", "adm", "edm", "consistency", "flow"))
]


@pytest.mark.parametrize("name", SAMPLED)
def test_it_trains(name):
    c, model, trainer, before = row(name)
    assert trainer.global_step == 2
    moved = [
        (p != old).any().item() for p, old in zip(model.network.parameters(), before, strict=True) if p.requires_grad
    ]
    zeros = kind(c["network"]) == "ADMUNet"  # what lies before two layers of zeros moves in the third step
    least = 0.5 if not zeros else 0.01 if c["warmup_steps"] else 0.2
    assert sum(moved) > least * len(moved)  # the first update of a warm-up has rate 0; some that start at 0 come later
    warm = min(2 / c["warmup_steps"], 1) if c["warmup_steps"] else 1
    decay = 0.5 * (1 + math.cos(math.pi * min(2 / c["decay_steps"], 1))) if c["decay_steps"] else 1
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(c["optimizer"]["lr"] * warm * decay, rel=1e-9)
    ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))
    same = all(torch.equal(ema.weights[key], p.detach()) for key, p in model.network.named_parameters())
    assert same == (c["callback"]["ema"]["decay"] == 0), "NCSN has no average of its weights, the others do"


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_loss_is_the_published_one(name):
    """With a network that outputs zeros the residual is the noise itself."""
    _, model, _, _ = row(name)
    process, generator = model.denoiser.process, torch.Generator().manual_seed(0)
    silent = Denoiser(lambda x, t: torch.zeros_like(x), process, model.denoiser.parameterization)
    eps = torch.randn(4, 3, 16, 16, generator=generator)
    t = torch.full((4,), 0.5)
    got = model.loss.at(silent, torch.rand(4, 3, 16, 16, generator=generator), t, eps)
    squared = eps.square().flatten(1)
    expected = squared.mean(1)
    if name == "ddpm/l_fixed":  # Ho et al. 2020, Eq. 12 with sigma_t^2 = beta_t, in bits/dim
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        abar, beta = (1 - beta).cumprod(0)[499], beta[499]
        expected = expected * (beta / (2 * (1 - beta) * (1 - abar) * math.log(2))).item()
    elif sde(settings(name)) == "vesde":  # 1/2 sigma^2 |s - target|^2, summed
        expected = 0.5 * squared.sum(1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("flow")])
def test_flow_matching_is_trained_as_published(name):
    """With a network that outputs zeros the loss is |eps - x_0|^2 / D, of pairs as the experiment couples them."""
    c, model, _, _ = row(name)
    silent = Denoiser(lambda x, t: torch.zeros_like(x), model.denoiser.process, model.denoiser.parameterization)
    x0, eps = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    got = model.loss.at(silent, x0, torch.full((4,), 0.5), eps)
    torch.testing.assert_close(got, (eps - x0).square().flatten(1).mean(1), rtol=1e-4, atol=0)
    settings = c["optimizer"]["lr"], c["data"]["batch_size"], c["warmup_steps"], c["trainer"]["gradient_clip_val"]
    assert settings == ((5e-4, 256, 45_000, 1.0) if name == "flow/lipman" else (2e-4, 128, 5_000, 1.0))
    assert model.loss.coupling == ("optimal_transport" if name == "flow/otcfm" else "independent")
    assert c["network"]["dropout"] == {"flow/lipman": 0.0}.get(name, 0.15 if "rectified" in name else 0.1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_network_has_the_published_inputs(name):
    c, model, _, _ = row(name)
    process, parameterization = model.denoiser.process, model.denoiser.parameterization
    last, levels_of_it = torch.ones(1, dtype=torch.float64), levels(c)
    family, discrete = sde(c), levels_of_it is not None
    assert (parameterization.low, parameterization.high) == (0.0 if family == "vesde" else -1.0, 1.0)
    assert low(c) == parameterization.low
    c_noise = 0.0 if family == "vesde" and discrete else math.log(50) if family == "vesde" else 999.0
    assert parameterization.conditioning(process, last).item() == pytest.approx(c_noise, abs=1e-9)
    first = torch.tensor([process.t_min], dtype=torch.float64)
    if discrete:
        nothing = parameterization.c_noise == "nothing"  # NCSNv2
        c_noise = 0.0 if family == "vpsde" or nothing else levels_of_it - 1
        assert parameterization.conditioning(process, first).item() == pytest.approx(c_noise, abs=1e-9)
    else:
        assert process.t_min == FACTS["sampling_eps"][family.removesuffix("sde")]
        assert process.t_train_min == FACTS["sampling_eps"]["train"]
    given = torch.full((1, 3, 16, 16), 0.3)
    seen = parameterization.network_input(given, *process.marginal(torch.tensor(0.7), given))
    torch.testing.assert_close(seen, 2 * given - 1 if family == "vesde" else given, rtol=0, atol=1e-6)
    if family == "vesde":
        sigmas = process.sigma(torch.cat([first, last]))
        assert sigmas.tolist() == pytest.approx([0.01, c["sigma_max"]], rel=1e-3)


@pytest.mark.parametrize("name", SAMPLED)
def test_it_samples(name):
    c, model, _, _ = row(name)
    chosen = shrunken(name)["model"]["sampler"]
    if kind(chosen) == "ProbabilityFlow":
        samples = model.sample(3, seed=1, sampler=instantiate(chosen))
        assert samples.shape == (3, *model.shape) and samples.std() > 0
        return
    predictor, corrector = chosen.get("predictor"), chosen.get("corrector")
    chosen["steps"] = times = min(2, model.denoiser.process.levels or 2)
    if corrector:
        corrector["steps"] = 1
    model.denoiser.nfe = 0
    samples = model.sample(3, seed=1, sampler=instantiate(chosen))
    assert samples.shape == (3, *model.shape) and samples.isfinite().all() and samples.std() > 0
    assert len(model.shape) == 1 or (samples.min() >= 0 and samples.max() <= 1)
    last = 1 if chosen["denoise"] and not predictor else 0
    last += times - 1 if kind(predictor) == "EDM" else 0  # Heun's second evaluations
    assert model.denoiser.nfe == times * bool(predictor) + times * bool(corrector) + last


def evaluations(name: str) -> int:
    """Network evaluations for a sample at full size."""
    c, model, _, _ = row(name)
    times = len(instantiate(c["model"]["sampler"]).check(model.denoiser))
    corrector = at(c, "sampler.corrector.steps") or 0
    last = 1 if c["sampler"]["denoise"] and not c["sampler"].get("predictor") else 0
    return times * bool(c["sampler"].get("predictor")) + times * corrector + last


# Song et al. 2021, Table 5: r of the corrector of PC1000 and, without a predictor, C2000.
R = {"ve_ancestral": 0.17, "ve_reverse_diffusion": 0.16, "ve_probability_flow": 0.17, "ve": 0.22,
     "vp_ancestral": 0.01, "vp_reverse_diffusion": 0.01, "vp_probability_flow": 0.04, "vp": 0.27}  # fmt: skip
PREDICTOR = {"ancestral": "Ancestral", "reverse_diffusion": "ReverseDiffusion", "probability_flow": "ReverseDiffusion"}


@pytest.mark.parametrize("name", [name for name in NAMES if "/table1/" in name])
def test_samplers_of_table_1(name):
    c, model, _, _ = row(name)
    who, _, scheme = name.rpartition("/")[2].rpartition("_")
    family, _, predictor = who.partition("_")
    assert evaluations(name) == {"p1000": 1000, "p2000": 2000, "pc1000": 2000, "c2000": 2001}[scheme]
    assert kind(c["sampler"].get("predictor")) == PREDICTOR.get(predictor, "none")
    assert bool(at(c, "sampler.predictor.probability_flow")) == (predictor == "probability_flow")
    assert at(c, "sampler.corrector.snr") == (R[who] if "c" in scheme else None)
    assert c["sampler"]["denoise"] and not c["sampler"]["clip"], "each ends with Tweedie's formula, none clips"
    if predictor == "ancestral":  # Appendix F: SMLD's variance is the posterior's, DDPM's beta
        assert c["sampler"]["predictor"]["variance"] == {"ve": "fixed_small", "vp": "fixed_large"}[family]
    if (family, scheme) == ("ve", "p2000"):
        sigmas = model.denoiser.process.sigma(instantiate(c["sampler"]).check(model.denoiser))
        even = torch.linspace(math.log(50), math.log(0.01), 2000, dtype=torch.float64).exp()
        torch.testing.assert_close(sigmas, even, rtol=1e-6, atol=0)
    if (family, scheme) == ("vp", "p2000"):
        times = instantiate(c["sampler"]).check(model.denoiser)
        torch.testing.assert_close(times, torch.linspace(1, 1e-3, 2000, dtype=torch.float64), rtol=1e-9, atol=0)


def test_evaluations_of_the_other_samplers():
    expected = {"ncsn/cifar10": 1000, "ncsn/cifar10_denoise": 1001, "ncsnv2/cifar10": 1161,
                "ncsnv2/cifar10_no_denoise": 1160, "score_sde/ncsnpp_continuous": 2000, "score_sde/ncsnpp": 2000,
                "score_sde/ddpm": 1000, "score_sde/ddpmpp_deep_continuous": 1000, "score_sde/vp_ncsnpp": 1000,
                "ddpm/l_simple": 1000, "ddim/eta0": 10, "ddim/sigma_hat": 10}  # fmt: skip
    assert {name: evaluations(name) for name in expected} == expected
    for name in ("ddim/eta0", "ddim/eta02", "ddim/eta05", "ddim/eta1", "ddim/sigma_hat"):
        c, model, _, _ = row(name)
        levels_kept = (instantiate(c["sampler"]).check(model.denoiser) * 1000).round().int() - 1
        official = [int(s) for s in torch.linspace(0, math.sqrt(800), 10, dtype=torch.float64) ** 2]
        assert levels_kept.flip(0).tolist() == official
        assert at(c, "sampler.predictor.eta") == {"0": 0.0, "02": 0.2, "05": 0.5, "1": 1.0}.get(
            name.partition("eta")[2]
        )
        assert c["sampler"]["clip"] is (name == "ddim/sigma_hat")


FULL = {"score_sde." + key: f"score_sde/{name}" for key, name in {
    "subvp.cifar10_ddpmpp_continuous": "subvp_ddpmpp_continuous", "ve.cifar10_ddpm": "ve_ddpm",
    "ve.cifar10_ncsnpp": "ncsnpp", "ve.cifar10_ncsnpp_continuous": "ncsnpp_continuous",
    "ve.cifar10_ncsnpp_deep_continuous": "ncsnpp_deep_continuous", "vp.cifar10_ddpmpp": "ddpmpp",
    "vp.cifar10_ddpmpp_continuous": "ddpmpp_continuous", "vp.cifar10_ddpmpp_deep_continuous": "ddpmpp_deep_continuous",
    "vp.cifar10_ncsnpp_continuous": "vp_ncsnpp_continuous", "vp.ddpm.cifar10": "ddpm",
    "vp.ddpm.cifar10_continuous": "ddpm_continuous"}.items()}  # fmt: skip
FULL |= {"ncsn.cifar10(ngf=128)": "ncsn/cifar10", "ncsnv2.cifar10": "ncsnv2/cifar10",
         "diffusers UNet2DModel google/ddpm-cifar10-32 config": "ddpm/l_simple"}  # fmt: skip


@pytest.mark.parametrize("official, name", FULL.items(), ids=FULL.values())
def test_networks_have_the_official_size(official, name):
    with torch.device("meta"):
        network = instantiate(settings(name)["network"])
    counts = [
        sum(p.numel() for p in network.parameters()),
        sum(p.numel() for p in network.parameters() if p.requires_grad),
    ]
    recorded = COUNTS[official]
    assert counts == (recorded if isinstance(recorded, list) else [recorded, recorded])
