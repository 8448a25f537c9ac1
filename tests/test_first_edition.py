"""Checkpoints written by the first edition (commit cfa3245) load, sample as before, and can be resumed."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from zygote import run

import diffusion_lab
from diffusion_lab import first_edition
from diffusion_lab.network import NCSNpp, UNet
from diffusion_lab.process import VP, DiscreteProcess, Geometric, Linear
from diffusion_lab.sampler import DDIM, EDM, Ancestral, DPMSolver, Sampler, UniPC
from diffusion_lab.storage import checkpoint_file

FOLDER = Path(__file__).parent / "reference" / "first_edition"
MODELS = ("ddpm", "score_sde", "ncsn", "ncsnv2")
SAMPLERS = {
    "trained": None,
    "ddim": Sampler(DDIM(), steps=4),
    "ddim_eta": Sampler(DDIM(0.5), steps=4),
    "heun": Sampler(EDM(2), steps=4, spacing="karras"),
    "dpm_solver": Sampler(DPMSolver(2), steps=4, spacing="log_snr"),
    "unipc": Sampler(UniPC(3), steps=4, spacing="log_snr"),
    "sde": Sampler(DPMSolver(2, stochastic=True), steps=4, spacing="log_snr"),
    "clipped": Sampler(Ancestral(), steps=4, clip=True),
}


def written(model: str, folder: Path) -> Path:
    """Unpack the checkpoint of a model."""
    file = folder / "checkpoints" / "step_00000003.ckpt"
    file.parent.mkdir()
    file.write_bytes(lzma.decompress((FOLDER / f"{model}.ckpt.xz").read_bytes()))
    return file


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:the first of the sampler")
def test_a_checkpoint_of_the_first_edition_samples_as_it_did(name, tmp_path):
    """Up to rounding, as the recorder adds in another order."""
    file = written(name, tmp_path)
    with np.load(FOLDER / "samples.npz") as arrays:
        recorded = {key: torch.as_tensor(arrays[key]) for key in arrays.files if key.startswith(f"{name}.")}
    assert len(recorded) == len(SAMPLERS) + 1
    models = {weights: diffusion_lab.load(file, weights=weights) for weights in ("ema", "raw")}
    for key, want in recorded.items():
        _, weights, sampler = key.split(".")
        *_, last = models[weights].trajectory(2, seed=7, sampler=SAMPLERS[sampler])
        assert (last.x - want).abs().max() < 2e-5 * want.abs().max(), key


def test_a_run_of_the_first_edition_is_resumed(tmp_path):
    file = written("ddpm", tmp_path)
    settings = checkpoint_file.read(file)["config"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    done = run("train.py", f"ckpt_path={tmp_path}", "trainer.max_steps=5", "decay_steps=3", "logger=csv")
    assert done.returncode == 0, done.stderr
    assert "resumes from step 3" in done.stdout
    assert checkpoint_file.read(tmp_path / "checkpoints" / "step_00000005.ckpt")["global_step"] == 5


FORMER = (("conv_in.", "enter.0.{0}"), ("downsample.", "enter.{1}."), ("upsample.", "leave.{2}."), ("conv_out.", "leave.{3}."),
          ("input_pyramid.", "inputs.{1}."), ("output_pyramid.", "outputs.{2}."))  # fmt: skip
"""Old prefixes of U-Net parameters."""


def former(name: str, levels: int, wrapped: bool) -> str:
    """The first edition's name of a U-Net's parameter; the first convolution was wrapped in NCSN++."""
    for new, old in FORMER:
        if name.startswith(new):
            rest = name.removeprefix(new)
            number = rest.partition(".")[0]
            follow = rest.partition(".")[2] if "{1}" in old or "{2}" in old else rest
            counted = int(number) if number.isdigit() else 0
            return old.format("0." * wrapped, counted + 1, counted, levels - 1) + follow
    return name


@pytest.mark.parametrize("network", [
    UNet(3, 16, channels=8, multipliers=(1, 2, 2), blocks=1, attention=(8,), groups=4),
    NCSNpp(3, 16, channels=8, multipliers=(1, 2, 2), blocks=1, attention=(8,)),
    NCSNpp(3, 16, channels=8, multipliers=(1, 2), blocks=1, progressive="residual", progressive_input="input_skip"),
    NCSNpp(3, 16, channels=8, multipliers=(1, 2), blocks=1, progressive="output_skip", progressive_input="none",
           resblock_type="ddpm", resamp_with_conv=False),
])  # fmt: skip
def test_every_u_net_parameter_is_renamed(network):
    own, levels = network.state_dict(), len(network.down)
    old = {f"inner.{former(name, levels, isinstance(network, NCSNpp))}": tensor for name, tensor in own.items()}
    assert not {name.removeprefix("inner.") for name in old} <= own.keys()
    renamed = first_edition.rename(old, [f"inner.{name}" for name in own])
    assert list(renamed) == [f"inner.{name}" for name in own]
    assert all(renamed[f"inner.{name}"] is tensor for name, tensor in own.items())
    mine = {"enter.weight": own, "leave.0.weight": own}  # of a user's own network
    assert first_edition.rename(mine, mine) == mine


def test_keys_and_classes_of_the_first_edition_are_renamed():
    line = "model.told=nothing"
    assert first_edition.override(line) == "model.c_noise=nothing" and first_edition.override("+told=x") == "+c_noise=x"
    assert (
        first_edition.override("name=told") == "name=told"
        and first_edition.override("model.untold=1") == "model.untold=1"
    )
    before = {
        "model": {"told": "level", "process": {"_target_": "diffusion_lab.process.Ladder", "levels": 3}},
        "a": ["told"],
    }
    now = first_edition.settings(before)
    assert now["model"] == {
        "c_noise": "level",
        "process": {"_target_": "diffusion_lab.process.DiscreteProcess", "levels": 3},
    }
    assert now["a"] == ["told"] and first_edition.settings(now) == now


def test_schedules_and_processes_written_for_the_first_edition_work():
    class Mine(Geometric):
        def ladder(self, levels):
            alpha, sigma = Geometric.noise_levels(self, levels)
            return alpha, 2 * sigma

    class Process(VP):
        def even_grid(self, steps, spacing, start, end):
            return torch.linspace(start, end, steps, dtype=torch.float64) ** 2

    assert DiscreteProcess(Mine(0.1, 1.0), 4).sigma(torch.tensor(1.0)) == 2
    assert Process(Linear()).timesteps(3, t_end=0.5).tolist() == [1, 0.5625, 0.25]


@pytest.mark.parametrize("line", ["model.told=level", "+model.told=level"])
def test_an_old_key_is_answered_with_its_new_name(line):
    done = run("train.py", "data=toy2d", line)
    assert done.returncode == 2 and "(told is called c_noise now)" in done.stderr


def test_the_time_laws_of_earlier_runs_are_those_of_now():
    old = {
        "loss": {"_target_": "diffusion_lab.loss.DenoisingLoss", "times": "importance"},
        "model": {"loss": {"_target_": "diffusion_lab.loss.HybridLoss", "time_law": None}},
        "choices": {"loss": "simple"},
    }
    new = first_edition.settings(old)
    assert new["loss"]["time_law"] == new["time_law"] == {"_target_": "diffusion_lab.loss.Importance"}
    assert new["model"]["loss"]["time_law"] == {"_target_": "diffusion_lab.loss.Uniform"}
    assert new["choices"]["time_law"] == "importance" and "times" not in new["loss"]
    assert first_edition.override("loss.times=importance") == "time_law=importance"
    assert first_edition.override("loss.time_law.history=5") == "time_law.history=5"
