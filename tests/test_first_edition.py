"""Checkpoints that the first edition wrote (commit cfa3245): they load, sample as they did, and train on."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from zygote import run

import diffusion_lab
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
    """The checkpoint of a model, in a file of its own."""
    file = folder / "checkpoints" / "step_00000003.ckpt"
    file.parent.mkdir()
    file.write_bytes(lzma.decompress((FOLDER / f"{model}.ckpt.xz").read_bytes()))
    return file


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:the first of the sampler")
def test_a_checkpoint_of_the_first_edition_samples_as_it_did(name, tmp_path):
    """To rounding: the recorder adds in another order."""
    file = written(name, tmp_path)
    with np.load(FOLDER / "samples.npz") as arrays:
        recorded = {key: torch.as_tensor(arrays[key]) for key in arrays.files if key.startswith(f"{name}.")}
    assert len(recorded) == len(SAMPLERS) + 1
    models = {weights: diffusion_lab.load(file, weights=weights) for weights in ("ema", "raw")}
    for key, want in recorded.items():
        _, weights, sampler = key.split(".")
        *_, last = models[weights].trajectory(2, seed=7, sampler=SAMPLERS[sampler])
        assert (last.x - want).abs().max() < 2e-5 * want.abs().max(), key


def test_a_run_of_the_first_edition_trains_on(tmp_path):
    file = written("ddpm", tmp_path)
    settings = checkpoint_file.read(file)["config"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    done = run("train.py", f"ckpt_path={tmp_path}", "trainer.max_steps=5", "decay_steps=3", "logger=csv")
    assert done.returncode == 0, done.stderr
    assert "goes on from step 3" in done.stdout
    assert checkpoint_file.read(tmp_path / "checkpoints" / "step_00000005.ckpt")["global_step"] == 5
