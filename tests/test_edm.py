"""EDM against NVlabs' program: networks from plain weights, preconditioning, losses and samplers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from experiment import settings
from hydra.utils import instantiate
from omegaconf import OmegaConf
from reference.record_adm import weights_of
from reference.record_edm import ABLATIONS, CASES, CHURN, STEPS, closed_form
from test_sampler_others import SHAPE, TARGET, At, ends, error, x_1

import diffusion_lab
from diffusion_lab.config.instantiate import instantiate as instantiate_part
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.interop.__main__ import main
from diffusion_lab.interop.edm import dhariwal_links, song_links
from diffusion_lab.interop.layout import recognise
from diffusion_lab.loss import DenoisingLoss, LogNormal
from diffusion_lab.network import NCSNpp
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, Cosine, DiscreteProcess, Geometric, Linear
from diffusion_lab.run import changes
from diffusion_lab.sampler import EDM
from diffusion_lab.verification.mixture import exact_denoiser

REFERENCE, CONF = Path(__file__).parent / "reference", Path(__file__).parents[1] / "conf" / "network"
RECORD = {key: torch.from_numpy(value) for key, value in np.load(REFERENCE / "edm.npz").items()}
NETWORKS = np.load(REFERENCE / "edm_networks.npz")
COUNTS = json.loads((REFERENCE / "param_counts.json").read_text())
CONSTANTS = json.loads((REFERENCE / "constants.json").read_text())
SIZES = {"channels": 32, "multipliers": [2, 1, 2], "blocks": 1, "attention": [8]}


def network_of(name: str, size: int = 32, **options) -> NCSNpp:
    """A network of conf/network."""
    config = OmegaConf.create({"data": {"shape": [3, size, size]}, "network": OmegaConf.load(CONF / f"{name}.yaml")})
    return instantiate(config.network, **options).eval()


@pytest.mark.parametrize("case", CASES)
def test_same_weights_give_the_official_output(case):
    used = CASES[case][1]
    labels = {"classes": 5, "augmentation": 9} if used else {}
    network = network_of(f"edm_{case.removesuffix('_labels')}", 16, **SIZES, **labels)
    official = weights_of(json.loads(str(NETWORKS[f"{case}_shapes"])))
    layout = recognise(network, official)
    assert layout.name == "EDM"
    assert {*layout.order(network)} == official.keys() - {"map_noise.freqs"}
    filters = {"enc.8x8_down.conv0.resample_filter": torch.ones(1, 1, 4, 4)}
    network.load_state_dict(layout.convert(network, official | filters))
    x, t, *more = (torch.from_numpy(NETWORKS[key]) for key in ("x", "t", *used))
    with torch.no_grad():
        out, wanted = network(x, t, *more), torch.from_numpy(NETWORKS[f"{case}_out"])
    assert ((out - wanted).abs().max() / wanted.abs().max()).item() < 5e-6


@pytest.mark.parametrize("new_order", [True, False])
def test_the_network_of_imagenet_gives_the_official_output(new_order):
    sizes = {"channels": 128, "multipliers": [1, 1], "blocks": 1, "attention": [8], "head_channels": 64}
    network = network_of(
        "adm", 16, **sizes, learned_range=False, classes=5, augmentation=9, new_attention_order=new_order
    )
    official = weights_of(json.loads(str(NETWORKS["dhariwal_shapes"])))
    layout = recognise(network, official)
    assert layout.name == "EDM" and {*layout.order(network)} == official.keys()
    network.load_state_dict(layout.convert(network, official))
    with torch.no_grad():
        out = network(*(torch.from_numpy(NETWORKS[key]) for key in ("x", "t", "label", "augmentation")))
    wanted = torch.from_numpy(NETWORKS["dhariwal_out"])
    assert ((out - wanted).abs().max() / wanted.abs().max()).item() < 5e-6
    narrow = network_of("adm", 16, **{**sizes, "channels": 64}, learned_range=False)
    with pytest.raises(ValueError, match="at least 4 channels in a group"):
        layout.convert(narrow, official)


def test_the_network_of_imagenet_has_the_official_size():
    """541 tensors and 295,899,267 parameters of DhariwalUNet with 1,000 labels; ours has a row for the null label."""
    c = settings("edm/imagenet64")["network"]
    with torch.device("meta"):
        network = instantiate({**c, "classes": 1000})
    assert len(dhariwal_links(network)) == 541
    assert sum(p.numel() for p in network.parameters()) == 295_899_267 + 4 * 192


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_the_networks_have_as_many_trained_parameters_as_the_official_ones(name):
    with torch.device("meta"):
        network = network_of(f"edm_{name}")
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == COUNTS[f"edm.cifar10.{name}"]


def test_the_recipe_has_the_official_numbers():
    c, official = settings("edm/vp_f"), CONSTANTS["configs"]["edm:cifar10 (train.py defaults)"]
    found = {
        "P_mean": c["time_law"]["mean"], "P_std": c["time_law"]["std"], "augment": c["data"]["augment"],
        "batch": c["data"]["batch_size"], "channel_mult": c["network"]["multipliers"],
        "dropout": c["network"]["dropout"], "ema_halflife_mimg": c["callback"]["ema"]["half_life"] / 1e6,
        "duration_mimg": c["trainer"]["max_steps"] * c["data"]["batch_size"] / 1e6, "lr": c["optimizer"]["lr"],
        "model_channels": c["network"]["channels"], "num_steps": c["sampler"]["steps"], "rho": c["sampler"]["rho"],
        "sigma_data": c["model"]["sigma_data"], "sigma_max": c["schedule"]["sigma_max"],
        "sigma_min": c["schedule"]["sigma_min"],
    }  # fmt: skip
    assert found == official
    assert c["warmup_steps"] * 512 == pytest.approx(10e6, rel=1e-4) and c["callback"]["ema"]["ramp"] == 0.05


def changed(name: str, before: str) -> set[str]:
    """The keys that differ between two experiments, without copies and paths."""
    one, two = changes.leaves(settings(before)), changes.leaves(settings(name))
    return {
        key
        for key in one | two
        if one.get(key) != two.get(key) and not key.startswith(("model.", "sde.process", "choices."))
    }


TRAINING = {"warmup_steps", "data.batch_size", "network.dropout", "optimizer.lr", "callback.ema.half_life",
            "trainer.max_steps", "trainer.gradient_clip_val"}  # fmt: skip


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_each_configuration_changes_what_the_paper_says(name):
    assert changed(f"edm/{name}_b", f"edm/{name}_a") == TRAINING
    assert changed(f"edm/{name}_c", f"edm/{name}_b") == {"network.multipliers", "network.label_embedding"}
    low = {"sde.low", "sigma_min", "sigma_max", "schedule.sigma_min", "schedule.sigma_max"} if name == "ve" else set()
    rows = {"sde.output", "sde.c_noise", "sde.unit_input", "sde.sigma_data"}
    assert changed(f"edm/{name}_d", f"edm/{name}_c") == rows | low
    assert {"time_law._target_", "loss.weighting"} <= changed(f"edm/{name}_e", f"edm/{name}_d")
    assert changed(f"edm/{name}_f", f"edm/{name}_e") == {"data.flip", "data.augment"}


@pytest.mark.parametrize("config", "abcde")
@pytest.mark.parametrize("name, lowest", [("vp", 0.002), ("ve", 0.02)])
def test_every_configuration_is_sampled_on_edms_grid(name, lowest, config):
    """18 levels from sigma / alpha = 80 in units of [-1, 1], down to the lowest that the baseline was trained with."""
    c = settings(f"edm/{name}_{config}")
    model = instantiate_part({**c["model"], "network": {"_target_": "torch.nn.Identity"}}, "model")
    times, row = model.sampler.check(model.denoiser), model.denoiser.parameterization
    sigma = (model.denoiser.process.log_snr(times) / -2).exp() * 2 / (row.high - row.low)
    lowest = lowest if config < "e" else 0.002
    i = torch.arange(18) / 17
    wanted = (80 ** (1 / 7) + i * (lowest ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert len(times) == 18
    torch.testing.assert_close(sigma.double(), wanted.double(), rtol=2e-3, atol=0)


# --------------------------------------------------------------------------- preconditioning and losses

ROWS = {  # their name -> (process, parameterization, weighting, reduction)
    "VP": (VP(Linear()), Parameterization("eps", "time_999"), "simple", "mean"),
    "VE": (VE(Geometric(0.01, 50.0)), Parameterization("scaled_score", "log_sigma", 0.0, 1.0), "simple", "half_sum"),
    "iDDPM": (DiscreteProcess(Cosine()), Parameterization("eps", "level"), "simple", "mean"),
    "EDM": (
        VE(Geometric(1e-4, 1e3)),
        Parameterization("edm", "quarter_log_sigma", unit_input=True, sigma_data=0.5),
        "output",
        "mean",
    ),
}


def ours(name: str) -> tuple[Denoiser, float]:
    """Our denoiser of one of their rows, and the unit of its images in theirs: VE has images in [0, 1]."""
    process, row, *_ = ROWS[name]
    return Denoiser(closed_form, process, row), 0.5 if name == "VE" else 1.0


def close(ours: torch.Tensor, theirs: torch.Tensor, bound: float) -> None:
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < bound


@pytest.mark.parametrize("name", ROWS)
def test_the_preconditioning_is_that_of_the_program(name):
    denoiser, unit = ours(name)
    y, noise, sigma = (RECORD[key].double() for key in ("y", "noise", "sigma"))
    t = denoiser.process.time(-2 * (unit * sigma).log())
    if name == "iDDPM":  # its table is our levels; in between it rounds
        u = RECORD["iDDPM_u"].double()
        levels = (denoiser.process.log_snr(torch.arange(1, 1001).double() / 1000) / -2).exp()
        assert (levels[:-1] / u.flip(0)[1:-1] - 1).abs().max() < 1e-3  # it computes abar in float32
        t = (1000 - (u[None] - sigma[:, None]).abs().argmin(1)).double() / 1000
    x = y + sigma.reshape(-1, 1, 1, 1) * noise
    inside = x if unit == 1 else (x + 1) / 2
    alpha, s = denoiser.process.marginal(t, inside)
    estimate = denoiser(alpha * inside, t)
    # D = x - sigma eps; iDDPM's table rounds c_noise, not the sigma beside it.  VP's c_noise is that of float32.
    found = inside - unit * sigma.reshape(-1, 1, 1, 1) * estimate.eps
    close(
        found if unit == 1 else 2 * found - 1, RECORD[f"{name}_D"].double(), {"iDDPM": 1e-2, "VP": 5e-5}.get(name, 1e-6)
    )


@pytest.mark.parametrize("name", ["VP", "VE", "EDM"])
def test_the_loss_of_each_image_is_that_of_the_program(name):
    denoiser, unit = ours(name)
    y, noise, u = (RECORD[key].double() for key in ("y", f"{name}_noise", f"{name}_u"))
    # Their law of times, and ours: uniform for VP, uniform in log sigma for VE, log-normal for EDM.
    t = (
        LogNormal().time(denoiser.process, -1.2 + 1.2 * u)
        if name == "EDM"
        else 1 + u * (1e-5 - 1)
        if name == "VP"
        else u
    )
    loss = DenoisingLoss(ROWS[name][2], reduction=ROWS[name][3])
    found = loss.at(denoiser, y if unit == 1 else (y + 1) / 2, t, noise)
    theirs = RECORD[f"{name}_loss"].double().flatten(1)
    close(found, theirs.sum(1) / 2 if name == "VE" else theirs.mean(1), 1e-6 if name == "EDM" else 5e-5)


def test_edm_is_the_v_row_of_data_of_unit_variance():
    """With y / sigma_data at the angle arctan(sigma / sigma_data) the output is -v and the loss its squared error."""
    sigma, x0, eps = torch.tensor([0.03, 0.4, 7.0]).double(), torch.randn(3, 2).double(), torch.randn(3, 2).double()
    column, edm = sigma[:, None], ROWS["EDM"][1]
    angle = (column / 0.5).atan()
    v = angle.cos() * eps - angle.sin() * x0 / 0.5
    x = x0 + column * eps
    assert (edm.eps(-v, x, torch.ones_like(column), column) - eps).abs().max() < 1e-12
    seen = edm.network_input(x, torch.ones_like(column), column)
    assert (seen - (angle.cos() * x0 / 0.5 + angle.sin() * eps)).abs().max() < 1e-12


# --------------------------------------------------------------------------- samplers

PROCESS = VE(Geometric(1e-4, 1e3))


def times_of(sigmas: torch.Tensor) -> torch.Tensor:
    return PROCESS.time(-2 * sigmas.log())


@pytest.mark.parametrize("name", ["heun", "churn", *ABLATIONS, "edm.heun.churn"])
def test_samples_are_those_of_the_program(name, monkeypatch):
    churn = {key.lower().replace("s_churn", "churn"): value for key, value in CHURN.items()} if "churn" in name else {}
    order = 1 if "euler" in name else 2
    sigmas = RECORD["edm.euler.sigmas" if "." not in name else f"{name.split('.')[0]}.euler.sigmas"]
    chosen = (sigmas >= CHURN["S_min"]) & (sigmas <= CHURN["S_max"])  # theirs draws noise at every step
    noise = torch.as_tensor(np.random.RandomState(92).randn(40, *SHAPE))[:STEPS][chosen]
    for module in ("loop", "plan"):
        monkeypatch.setattr(f"diffusion_lab.sampler.{module}.stream", lambda *_: iter(noise).__next__)
    denoiser = exact_denoiser(TARGET, PROCESS)
    for ours in ends(At(EDM(order, **churn), times_of(sigmas)), denoiser, sigmas[0] * x_1()):
        assert error(ours, RECORD[name]) < 1e-6


@pytest.mark.parametrize(
    "name, process, spacing, ends_at",
    [
        ("vp", VP(Linear()), "linear", (1.0, 1e-3)),
        ("ve", VE(Geometric(0.02, 100.0)), "linear", (1.0, 1e-5)),
        ("edm", VE(Geometric(0.002, 80.0)), "karras", (1.0, 1e-5)),
    ],
)
def test_our_spacings_are_their_discretisations(name, process, spacing, ends_at):
    times = process.timesteps(STEPS, spacing, 7.0, *ends_at)
    close(process.log_snr(times.double()) / -2, RECORD[f"{name}.euler.sigmas"].log(), 5e-5)


def test_iddpms_discretisation_is_made_of_our_levels():
    levels = (DiscreteProcess(Cosine()).log_snr(torch.arange(1, 1001).double() / 1000) / -2).exp()
    sigmas = RECORD["iddpm.euler.sigmas"]
    assert ((levels[None] - sigmas[:, None]).abs().min(1).values / sigmas).max() < 1e-3  # it computes abar in float32


# --------------------------------------------------------------------------- import


def test_a_plain_state_dict_becomes_a_model(tmp_path, monkeypatch):
    """Through the command, with the names of NVlabs' denoiser and the number of augmentation labels of the recipe."""
    network = network_of("edm_ddpmpp", 16, **SIZES, augmentation=9)
    names = {link.ours: f"model.{link.theirs}" for link in song_links(network)}
    weights = {names[key]: torch.randn_like(value) for key, value in network.state_dict().items()}
    torch.save(weights, tmp_path / "edm.pt")
    monkeypatch.setattr(
        "diffusion_lab.interop.edm.grouped", lambda weight: weight
    )  # so that ours are those of the file
    words = ["data.shape=[3,16,16]", *(f"network.{key}={value}".replace(" ", "") for key, value in SIZES.items())]
    main([str(tmp_path / "edm.pt"), "model=edm", "data=cifar10", *words, f"out={tmp_path / 'out'}"])
    model = diffusion_lab.load(tmp_path / "out")
    assert model.denoiser.parameterization.sigma_data == 0.5
    for key, value in model.network.state_dict().items():
        assert value.flatten().equal(weights[names[key]].flatten())


def test_class_conditional_weights_of_imagenet_become_a_model(tmp_path, capsys):
    """Through the command, with NVlabs' names, of which nothing says that they are of a conditional model."""
    words = ["network.channels=128", "network.multipliers=[1,1]", "network.blocks=1", "network.attention=[8]"]
    official = weights_of(json.loads(str(NETWORKS["dhariwal_shapes"])))
    del official["map_augment.weight"]
    torch.save({f"model.{name}": weight for name, weight in official.items()}, tmp_path / "edm.pt")
    main([str(tmp_path / "edm.pt"), "experiment=edm/imagenet64", "data.root=nowhere", "data.shape=[3,16,16]", *words,
          f"out={tmp_path / 'out'}"])  # fmt: skip
    assert "labels   5 classes, by number" in capsys.readouterr().out
    model = diffusion_lab.load(tmp_path / "out")
    x, t, label = (torch.from_numpy(NETWORKS[key]) for key in ("x", "t", "label"))
    with torch.no_grad():
        plain, other = (model.network(x, t, label=labels) for labels in (label, label * 0))
    assert plain.shape == x.shape and not torch.allclose(plain, other)
    assert model.sample(1, steps=2, label=4).shape == (1, 3, 16, 16)


def test_class_conditional_weights_of_cifar10_become_a_model(tmp_path):
    network = network_of("edm_ddpmpp", 16, **SIZES, augmentation=9, classes=4)
    weights = {link.theirs: network.state_dict()[link.ours] for link in song_links(network)}
    torch.save(weights, tmp_path / "edm.pt")
    words = ["data.shape=[3,16,16]", *(f"network.{key}={value}".replace(" ", "") for key, value in SIZES.items())]
    main([str(tmp_path / "edm.pt"), "model=edm", "data=cifar10", *words, f"out={tmp_path / 'out'}"])
    model = diffusion_lab.load(tmp_path / "out")
    assert model.labels.classes == 4
    again = model.network.state_dict()
    assert all(again[name].equal(weight) for name, weight in network.state_dict().items() if "qkv" not in name)
