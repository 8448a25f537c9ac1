"""Checkpoints: plain, self-contained, written atomically; and configurations cannot build arbitrary classes."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import pytorch_lightning as pl
import torch
from hostile import Hostile

import diffusion_lab
from diffusion_lab import checkpoint
from diffusion_lab.checkpoint import CheckpointError
from diffusion_lab.config.instantiate import instantiate, resolve
from diffusion_lab.data import Toy2D
from diffusion_lab.errors import ConfigError
from diffusion_lab.finite import NonFinite
from diffusion_lab.sampler import DDIM, Sampler
from diffusion_lab.storage import checkpoint_file, run_directory
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO

MODEL = {
    "_target_": "diffusion_lab.model.DDPM",
    "network": {"_target_": "diffusion_lab.network.MLP", "dimensions": 2, "width": 16, "depth": 1},
    "schedule": {"_target_": "diffusion_lab.process.Linear"},
    "loss": {"_target_": "diffusion_lab.loss.DenoisingLoss"},
    "sampler": {
        "_target_": "diffusion_lab.sampler.Sampler",
        "predictor": {"_target_": "diffusion_lab.sampler.DDIM"},
        "steps": 5,
    },
    "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3},
    "shape": [2],
    "grey_levels": None,
}


@pytest.fixture
def saved(tmp_path):
    """A checkpoint whose EMA weights are all 0.5, with the model that has the raw ones."""
    torch.manual_seed(0)
    model = instantiate(MODEL, "model")
    contents = {
        "state_dict": model.state_dict(),
        "global_step": 7,
        "config": {"model": MODEL},
        "ema": {"weights": {n: torch.full_like(p, 0.5) for n, p in model.network.named_parameters()}},
    }
    path = tmp_path / "run" / "checkpoints" / "step_00000007.ckpt"
    AtomicCheckpointIO().save_checkpoint(contents, path)
    return path, model, contents


def test_load_returns_the_model_ready_to_sample(saved):
    path, model, _ = saved
    raw = diffusion_lab.load(path, weights="raw")
    assert torch.equal(raw.sample(3, seed=1), model.eval().sample(3, seed=1))
    averaged = diffusion_lab.load(path.parents[1])  # the run directory
    assert all((p == 0.5).all() for p in averaged.network.parameters())
    assert not averaged.training and averaged.sample(2).shape == (2, 2)


def test_sampling_restores_training_mode_and_ignores_batch_size(saved):
    model = saved[1].train()
    whole = model.sample(6, seed=3)
    assert model.training
    torch.testing.assert_close(model.sample(6, seed=3, batch_size=4), whole)
    torch.testing.assert_close(model.sample(2, seed=3, first=4), whole[4:])


def other(path, kind):
    """A file that is not a checkpoint."""
    if kind == "weights":
        torch.save({"weights": torch.ones(2)}, path)
    elif kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config", "state_dict")
    else:
        path.write_text("not a checkpoint at all")


@pytest.mark.parametrize("damage", [0, 100, -1000, "weights", "archive", "text"])
def test_a_truncated_or_foreign_file_is_skipped_for_the_previous_checkpoint(saved, tmp_path, capsys, damage):
    path, *_ = saved
    newer = path.with_name("step_00000009.ckpt")
    if isinstance(damage, int):
        newer.write_bytes(path.read_bytes()[:damage])
    else:
        other(newer, damage)
    assert run_directory.find(path.parents[1]) == run_directory.find("last", tmp_path) == path
    assert f"{newer} is truncated or damaged and skipped" in capsys.readouterr().out
    assert run_directory.find(newer) == newer, "asked for by name, it is not exchanged for another"
    with pytest.raises(CheckpointError, match=r"step_00000009.ckpt"):
        checkpoint_file.read(newer)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no complete checkpoint: step_00000009.ckpt, step_00000007.ckpt"):
        run_directory.find(path.parents[1])


def test_last_is_the_newest_run(saved, tmp_path):
    path, _, contents = saved
    newer = tmp_path / "other" / "checkpoints" / "step_00000009.ckpt"
    AtomicCheckpointIO().save_checkpoint(contents, newer)
    os.utime(newer.parent, (2e9, 2e9))
    assert run_directory.find("last", tmp_path) == newer
    with pytest.raises(CheckpointError, match="no run with a checkpoint"):
        run_directory.find("last", tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="does not exist"):
        run_directory.find(tmp_path / "typo")
    with pytest.raises(CheckpointError, match=r"does not exist: .*checkpoints holds step_00000009.ckpt$"):
        run_directory.find(newer.with_name("best.ckpt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        run_directory.find(tmp_path / "empty")


def test_a_model_loaded_in_inference_mode_has_gradients(saved):
    with torch.inference_mode():
        model = diffusion_lab.load(saved[0])
    model.network(torch.zeros(1, 2), torch.zeros(1)).sum().backward()
    assert all(p.grad is not None for p in model.network.parameters())


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "text", "dots", "other"])
def test_damaged_and_foreign_files_are_named_in_one_line(saved, tmp_path, damage):
    bad = tmp_path / "bad.ckpt"
    whole = saved[0].read_bytes()
    if damage == "other":
        torch.save({"weights": torch.ones(2)}, bad)
    else:
        foreign = {"foreign": b"not a checkpoint at all", "text": b"root:x:0:0:root:/root:/bin/bash\n", "dots": b"...."}
        bad.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", **foreign}[damage])
    with pytest.raises(CheckpointError, match=r"bad\.ckpt") as error:
        checkpoint_file.read(bad)
    assert "\n" not in str(error.value)[:200]


@pytest.mark.parametrize("kind", ["whole", "legacy", "bare"])
def test_hostile_pickle_is_not_executed_by_reading_resuming_or_sampling(saved, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = saved[0].with_name("step_00000009.ckpt")  # the newest of its run
    if kind == "bare":
        path.write_bytes(pickle.dumps(Hostile("exploded"), protocol=2))
    else:
        torch.save({**saved[2], "x": Hostile("exploded")}, path, _use_new_zipfile_serialization=kind == "whole")
    for use in (checkpoint_file.read, diffusion_lab.load, resume):
        with pytest.raises(
            (CheckpointError, pickle.UnpicklingError), match="refused|posix.mkdir|nt.mkdir|Weights only"
        ):
            use(path)
    with pytest.raises(
        CheckpointError, match=r"refused, it is not a file of plain tensors and containers(: it holds \S+)?$"
    ):
        checkpoint_file.read(path)  # in words that do not advise to execute it
    assert run_directory.find(path.parents[1]) == (path if kind == "whole" else saved[0]), "what is no archive is cut"
    assert not (tmp_path / "exploded").exists()
    pickle.loads(path.read_bytes()) if kind == "bare" else torch.load(path, weights_only=False)
    assert (tmp_path / "exploded").exists(), "the trap works"


def resume(path):
    """Resume from a checkpoint as train.py does, which has read it before."""
    trainer = pl.Trainer(accelerator="cpu", max_steps=9, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(instantiate(MODEL, "model"), datamodule=Toy2D(train_size=8), ckpt_path=path, weights_only=True)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "builtins.eval",
        "diffusion_lab.checkpoint.torch.load",
        "diffusion_lab.checkpoint.pickle.loads",
        "diffusion_lab.checkpoint.load",
        "diffusion_lab.checkpoint.Path",
        "torch.nn.modules.module.functools.partial",
    ],
)
def test_hostile_targets_are_refused(saved, tmp_path, target):
    with pytest.raises(ConfigError, match="refused|does not exist"):
        resolve(target)
    contents = {**saved[2], "config": {"model": {**MODEL, "network": {"_target_": target, "f": "x"}}}}
    AtomicCheckpointIO().save_checkpoint(contents, tmp_path / "bad.ckpt")
    with pytest.raises(ConfigError, match="refused|does not exist"):
        diffusion_lab.load(tmp_path / "bad.ckpt")


def test_bad_arguments_name_the_node():
    with pytest.raises(ConfigError, match=r"model\.schedule: .*beta_minimum"):
        instantiate({**MODEL, "schedule": {"_target_": "diffusion_lab.process.Linear", "beta_minimum": 1}}, "model")
    with pytest.raises(ConfigError, match=r"model\.schedule: .*beta_min=30.0 must be less than beta_max"):
        instantiate({**MODEL, "schedule": {"_target_": "diffusion_lab.process.Linear", "beta_min": 30.0}}, "model")


def test_missing_ema_and_wrong_weights_are_reported(saved):
    contents = saved[2]
    with pytest.raises(CheckpointError, match="weights=raw"):
        checkpoint.build({k: v for k, v in contents.items() if k != "ema"})
    with pytest.raises(CheckpointError, match="do not fit"):
        checkpoint.build({**contents, "state_dict": {}}, "raw")


@pytest.mark.parametrize("options, message", [
    ({"weights": "EMA"}, "weights='EMA' must be ema or raw"),
    ({"weights": "average"}, "must be ema or raw"),
    ({"weights": None}, "must be ema or raw"),
    ({"device": "gpu"}, "device='gpu' is not on this machine: choose from cpu"),
    ({"device": "cuda:99"}, "device='cuda:99' is not on this machine"),
    ({"device": 2.5}, "device=2.5 is not on this machine"),
])  # fmt: skip
def test_weights_and_devices_that_do_not_exist_are_refused(saved, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        diffusion_lab.load(saved[0], **options)
    assert "\n" not in str(refusal.value)


def test_a_path_may_start_with_a_tilde_and_must_be_valid(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved[0].parents[2]))
    assert diffusion_lab.load("~/run").sample(1).shape == (1, 2)
    for path in (None, 3, ["run"]):
        with pytest.raises(ValueError, match="give the path of a run directory"):
            diffusion_lab.load(path)


@pytest.mark.parametrize("count, options, message", [
    (-1, {}, "count=-1 must be an integer >= 0"),
    (2.5, {}, "count=2.5 must be an integer"),
    ("2", {}, "count='2' must be an integer"),
    (None, {}, "count=None must be"),
    (2, {"seed": -1}, "seed=-1 must be an integer >= 0"),
    (2, {"seed": "now"}, "seed='now' must be"),
    (2, {"batch_size": 0}, "batch_size=0 must be an integer >= 1"),
    (2, {"first": -4}, "first=-4 must be"),
    (2, {"steps": 0}, "steps=0 must be an integer >= 1"),
    (2, {"steps": 2000}, "between 1 and the model's 1000 levels, got 2000"),
    (2, {"sampler": "ode", "steps": 5}, "ProbabilityFlow has no number of steps"),
    (2, {"sampler": "dimm"}, "unknown sampler dimm .did you mean ddim"),
    (2, {"sampler": "trained"}, "unknown sampler trained"),
    (2, {"sampler": DDIM()}, "is not a sampler: use for example .*Sampler.DDIM.., steps=50"),
    (2, {"sampler": Sampler}, "is not a sampler: use"),
])  # fmt: skip
def test_arguments_of_sample_are_checked(saved, count, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        diffusion_lab.load(saved[0]).sample(count, **options)
    assert "\n" not in str(refusal.value)


def test_samplers_by_name_with_optional_steps_and_seeds(saved):
    model, own = diffusion_lab.load(saved[0], weights="raw"), saved[1].eval()
    assert model.sample(0).shape == (0, 2) and model.sample(3.0).shape == (3, 2)
    assert not torch.equal(model.sample(2, seed=None), model.sample(2, seed=None))
    assert torch.equal(model.sample(2, sampler="ddim", steps=7), model.sample(2, sampler=Sampler(DDIM(), steps=7)))
    assert torch.equal(model.sample(2, steps=5), model.sample(2)) and model.sampler.steps == 5
    assert not torch.equal(model.sample(2, steps=9), model.sample(2)) and model.sampler.steps == 5
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.sample(2, sampler="heun"), model.sample(2, sampler="heun"))
    with pytest.raises(ValueError, match="for a model from diffusion_lab.load"):
        own.sample(2, sampler="ddim")


def test_user_samplers_are_checked(saved):
    model = diffusion_lab.load(saved[0])
    assert model.sample(3, sampler=lambda denoiser, shape, generators, device: torch.zeros(shape)).shape[0] == 3
    for wrong, got in ((torch.zeros(1, 2), r"\(1, 2\)"), (None, "a NoneType")):
        with pytest.raises(ValueError, match=rf"the sampler returns {got}, expected a tensor \(3, 2\)"):
            model.sample(3, sampler=lambda *_, wrong=wrong: wrong)
    with pytest.raises(NonFinite, match="samples 0, 1 are not finite"):
        model.sample(2, sampler=lambda *_: torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match=r"<lambda> has no method trajectory\(...\)"):
        next(model.trajectory(2, sampler=lambda *_: None))


def test_more_samples_than_memory_holds_are_refused_at_once(saved):
    with pytest.raises(ValueError, match=r"count=1,000,000,000,000,000 samples take .* GiB of memory: sample parts"):
        diffusion_lab.load(saved[0]).sample(10**15)


def test_an_interrupted_save_keeps_the_old_file_and_no_temporary_files(saved, monkeypatch):
    path, _, contents = saved
    before = path.read_bytes()

    def half(checkpoint, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space"):
        AtomicCheckpointIO().save_checkpoint(contents, path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]
