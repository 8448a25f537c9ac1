"""The commands a user types, each run for real in a new process."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import zygote
from PIL import Image

import diffusion_lab
from diffusion_lab.config import origin

ROOT = Path(__file__).resolve().parents[1]


def python(*words: str, cwd: Path, code: int = 0) -> str:
    done = zygote.run(*words, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def run(script: str, *arguments: str, cwd: Path, code: int = 0) -> str:
    return python(str(ROOT / script), *arguments, cwd=cwd, code=code)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A directory in which `python train.py debug=fast` was run, its run directory, and what was printed."""
    root = tmp_path_factory.mktemp("digits")
    said = run("train.py", "debug=fast", "trainer.accelerator=cpu", "variance=fixed_small", "logger=csv", cwd=root)
    return root, next(root.glob("logs/train/ddpm_digits/*")), said


def test_run_directory_holds_everything(digits):
    root, folder, said = digits
    config = (folder / "config.yaml").read_text()
    assert "???" not in config and "${" not in config and "max_steps: 4" in config
    assert [p.name for p in sorted(folder.glob("checkpoints/*"))] == ["step_00000002.ckpt", "step_00000004.ckpt"]
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    losses = [(int(r["step"]), float(r["train/loss"])) for r in rows if r["train/loss"]]
    assert [s for s, _ in losses] == [1, 2, 3, 4] and all(0.3 < loss < 3 for _, loss in losses)
    for column in ("train/learning_rate", "train/grad_norm", "train/images_per_second", "train/ema_decay", "val/loss"):
        assert any(r[column] for r in rows), column
    rates = [float(r["train/learning_rate"]) for r in rows if r["train/learning_rate"]]
    warming_and_falling = [3e-3 * k / 200 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)]
    assert rates == pytest.approx(warming_and_falling, abs=1e-12)
    grid = np.asarray(Image.open(folder / "samples.png"))
    assert grid.shape[0] >= 2 * 64 and grid.std() > 10
    assert (folder / "samples/step_00000002.png").exists() and (folder / "schedule.png").exists()
    assert Image.open(folder / "trajectory.gif").n_frames >= 2 and (folder / "trajectory.png").exists()
    assert "discrete process, 1,000 levels" in said and "loss  " not in said
    for name in (
        "samples.png",
        "samples/",
        "trajectory.gif",
        "results.json",
        "report.html      all of this on one page",
        f"sample from it:  {origin.command('sample', folder)} sampler=ddim",
    ):
        assert name in said


def test_results_carry_their_protocol(digits):
    results = json.loads((digits[1] / "results.json").read_text())
    assert results["weights"] == "ema" and results["step"] == 4 and "fixed_small" in results["sampler"]
    assert results["model"] == "ddpm" and results["data"] == "digits" and results["training_seconds"] > 0
    distance = results["metrics"]["fd_digits_held_out_20"]
    protocol = distance["protocol"]
    assert protocol["reference"] == "digits held_out" and protocol["reference_count"] == 397
    assert protocol["samples"] == 20 and distance["nfe"] == 4 and distance["weights"] == "ema"
    assert sum(distance["classes"].values()) == 20 and distance["real"] < distance["value"]
    bound = results["metrics"]["bound_bits_per_dim"]
    assert bound["value"] == pytest.approx(sum(bound["terms"].values())) and bound["standard_error"] > 0


def test_checkpoint_is_plain_and_loads_in_python(digits):
    path = sorted(digits[1].glob("checkpoints/*"))[-1]
    contents = torch.load(path, weights_only=True)
    assert contents["config"]["data"]["batch_size"] == 64 and contents["ema"]["updates"] == 4
    model = diffusion_lab.load(digits[1])
    images = model.sample(5, seed=3)
    assert images.shape == (5, 1, 8, 8) and images.min() >= 0 and images.max() <= 1


def test_sample_command_writes_images_and_numbers(digits):
    root, folder, _ = digits
    said = run(
        "sample.py", "ckpt_path=last", "sampler=ddim", "sampler.steps=3", "num_samples=10", "evaluate=true", "png=true",
        "trajectory=true", "batch_size=4", cwd=root,
    )  # fmt: skip
    out = next(root.glob("logs/sample/*ddim*"))
    images = np.load(out / "samples.npz")["arr_0"]
    assert images.dtype == np.uint8 and images.shape == (10, 8, 8, 1)
    pngs = sorted((out / "png").glob("*.png"))
    assert len(pngs) == 10 and (np.asarray(Image.open(pngs[3])) == images[3, :, :, 0]).all()
    results = json.loads((out / "results.json").read_text())
    assert results["nfe"] == 3 and "ddim (eta=0.0, steps=3" in results["sampler"] and "fd_digits_held_out_10" in said
    assert (out / "samples.png").exists() and (out / "trajectory.png").exists()
    # The same images come out of Python, in another batch size.
    from diffusion_lab.sampler import DDIM, Sampler

    again = diffusion_lab.load(folder).sample(10, sampler=Sampler(DDIM(), steps=3))
    assert np.abs(again.permute(0, 2, 3, 1).numpy() * 255 - images).max() < 0.6


def test_resume_goes_on_where_it_stopped(digits):
    root, folder, _ = digits
    more = ("ckpt_path=last", "trainer.max_steps=6")
    assert "decay_steps=6 extends the decay, decay_steps=4 keeps it at 0: add one" in run(
        "train.py", *more, cwd=root, code=2
    )
    said = run("train.py", *more, "allow_changes=true", cwd=root)
    assert "results.json holds the results of step 4: the next evaluation replaces it" in said
    assert "resumes from step 4, " in said and "changed: decay_steps=6 (was 4), trainer.max_steps=6 (was 4)" in said
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    contents = torch.load(folder / "checkpoints/step_00000006.ckpt", weights_only=True)
    assert contents["global_step"] == 6 and contents["ema"]["updates"] == 6


def test_sampling_refuses_in_one_line(digits):
    root = digits[0]
    for arguments, message in (
        (["ckpt_path=nowhere"], "nowhere does not exist"),
        (["ckpt_path=last", "sampler.steps=5000"], "between 1 and the model's 1000 levels"),
        (["ckpt_path=last", "trainer.accelerator=gpu", "trainer.devices=[7]"], "use trainer.accelerator=cpu"),
    ):
        said = run("sample.py", *arguments, cwd=root, code=2)
        assert message in said and "Traceback" not in said


def test_missing_data_is_refused_before_training(tmp_path):
    said = run("train.py", "data=cifar10", "logger=csv", "trainer.accelerator=cpu", cwd=tmp_path, code=2)
    assert "data.download=true" in said and "Traceback" not in said
    assert not [*tmp_path.rglob("*")]  # nor does it leave a directory


def test_points_in_the_plane(tmp_path):
    run(
        "train.py",
        "data=toy2d",
        "data.name=two_modes",
        "debug=fast",
        "trainer.accelerator=cpu",
        "logger=csv",
        cwd=tmp_path,
    )
    folder = next(tmp_path.glob("logs/train/ddpm_toy2d/*"))
    assert np.asarray(Image.open(folder / "samples.png")).shape[1] >= 1000
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    assert {
        "sliced_wasserstein_20",
        "energy_distance_20",
        "log_density_20",
        "mode_weight_error_20",
        "bound_nats",
    } <= metrics.keys()


@pytest.mark.parametrize("changes", [
    ["schedule=sigmoid", "model.output=x0", "loss.weighting=min_snr"],
    ["schedule=cosine", "model.output=v", "loss.weighting=v", "likelihood=none", "sampler=ddim", "sampler.steps=4"],
    ["schedule=geometric", "schedule.sigma_max=20", "model.output=score", "loss.vlb_weight=0.001"],
])  # fmt: skip
def test_schedules_outputs_and_weights_compose(tmp_path, changes):
    run("train.py", "data=toy2d", "debug=fast", "trainer.accelerator=cpu", "logger=csv", *changes, cwd=tmp_path)
    config = next(tmp_path.glob("logs/train/*/*/config.yaml")).read_text()
    for change in changes:
        key, value = change.split("=")
        if "." in key:
            assert f"{key.split('.')[-1]}: {value}" in config
    assert next(tmp_path.glob("logs/train/*/*/results.json")).exists()


def test_paper_size_network_trains_saves_and_samples(tmp_path):
    """The published U-Net on real 32x32 colour crops: a step, a checkpoint, a sample."""
    said = run(
        "train.py", "data=patches", "data.train_size=64", "data.held_out_size=32", "debug=fast", "trainer.accelerator=cpu",
        "logger=csv", "trainer.max_steps=1", "data.batch_size=4", "callback.samples.every_n_steps=null", "sampler.steps=2",
        "callback.evaluation.at_end=false", "callback.samples.count=1", "callback.samples.frames=2", cwd=tmp_path,
    )  # fmt: skip
    assert "35,746,307 parameters" in said and "the Fréchet distance is left out" in said
    run("sample.py", "ckpt_path=last", "num_samples=1", "sampler=ddim", "sampler.steps=2", cwd=tmp_path)
    assert np.load(next(tmp_path.glob("logs/sample/*/samples.npz")))["arr_0"].shape == (1, 32, 32, 3)


@pytest.mark.parametrize("pitfall, picture", [("no_data", "score_error.png"), ("mode_weights", "mode_weights.png")])
def test_pitfalls_are_drawn(tmp_path, pitfall, picture):
    small = ["callback.mode_weights.count=50"] if pitfall == "mode_weights" else []
    said = run(
        "train.py", f"experiment=pitfalls/{pitfall}", "debug=fast", "trainer.accelerator=cpu", "logger=csv",
        "sampler.corrector.steps=2", *small, cwd=tmp_path,
    )  # fmt: skip
    assert np.asarray(Image.open(next(tmp_path.glob(f"logs/train/*/*/{picture}")))).shape[1] >= 1000
    assert ("median error" if pitfall == "no_data" else "annealed Langevin") in said
    if pitfall == "mode_weights":
        refused = run("train.py", "experiment=pitfalls/mode_weights", "data.name=moons", cwd=tmp_path, code=2)
        assert "data.name=two_modes" in refused
        folder = next(tmp_path.glob("logs/train/*/*"))
        results = folder / "results.json"
        before, drawn = json.loads(results.read_text()), folder / picture
        results.unlink(), drawn.unlink()  # as a signal during the final evaluation leaves it
        said = run("train.py", "ckpt_path=last", cwd=tmp_path)
        assert "training is done: step 4 of 4" in said and "its end was not reached" in said and drawn.exists()
        after = json.loads(results.read_text())
        assert after["step"] == 4 and after["metrics"] == before["metrics"] and "log-determinant" in said
        assert [path.name for path in folder.glob("checkpoints/*4.ckpt")] == ["step_00000004.ckpt"]
        written = results.stat().st_mtime_ns
        said = run("train.py", "ckpt_path=last", cwd=tmp_path)
        assert "its end was not reached" not in said and "not evaluated" not in said and "the numbers above" in said
        assert "log_density_20" in said and results.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "model",
    [
        ["model=score_sde", "sde=subvp"],
        ["model=ncsnv2"],
        ["model=score", "loss=implicit", "sampler.corrector.steps=2"],
        ["model=score", "loss=contrastive", "network=energy", "loss.steps=2", "sampler.corrector.steps=2"],
    ],
)
def test_methods_run_on_points_from_training_to_comparison(tmp_path, model):
    run("train.py", *model, "data=toy2d", "debug=fast", "trainer.accelerator=cpu", "logger=csv", cwd=tmp_path)
    metrics = json.loads(next(tmp_path.glob("logs/train/*/*/results.json")).read_text())["metrics"]
    assert ("flow_nats" in metrics) == (model[0] != "model=score")
    if model[0] == "model=score":
        return
    run(
        "sample.py", "ckpt_path=last", "num_samples=20", "compare=[ddim,heun,pc,ode]", "compare_steps=[25]",
        cwd=tmp_path,
    )  # fmt: skip
    points = json.loads(next(tmp_path.glob("logs/sample/*compare*/compare.json")).read_text())["points"]
    nfe = {p["sampler"]: p["nfe"] for p in points if p["metric"].startswith("sliced")}
    assert nfe["ddim"] == 25 and nfe["heun"] == 49 and nfe["pc"] == 50 and nfe["ode"] > 10
    assert next(tmp_path.glob("logs/sample/*compare*/compare.png")).stat().st_size > 10_000
    page = next(tmp_path.glob("logs/sample/*compare*/report.html")).read_text()
    assert ">heun\N{NO-BREAK SPACE}25</th>" in page and ">49</td>" in page
