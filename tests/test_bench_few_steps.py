"""The table of few-step quality: diffusers' schedulers where our samplers stand, steps that are counted, what is told."""

from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from experiment import composed
from omegaconf import OmegaConf

from diffusion_lab.bench import few_steps, schedulers, students
from diffusion_lab.bench.benchmark import Unavailable
from diffusion_lab.bench.implementation import ours
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.errors import ConfigError
from diffusion_lab.noise import image_generators
from diffusion_lab.process import DiscreteProcess, Geometric, Linear
from diffusion_lab.sampler import Ancestral, DPMSolver, Sampler
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO
from diffusion_lab.verification import mixture
from diffusion_lab.verification.mixture import exact_denoiser

SHAPE = (1, 8, 8)


def model(process=None):
    denoiser = exact_denoiser(mixture.diag64(), process or DiscreteProcess(Linear(), 1000))
    return SimpleNamespace(denoiser=denoiser, shape=SHAPE)


@pytest.mark.parametrize(
    ("scheduler", "options", "steps", "sampler"),
    [
        ("DDPMScheduler", {}, 20, lambda: Sampler(Ancestral("fixed_small"), steps=20, clip=True)),
        # Its last move, from the lowest noise to none, is our denoising step; its times are rounded to levels.
        ("DPMSolverMultistepScheduler", schedulers.LOG_SNR, 60, lambda: Sampler(DPMSolver(), None, 60, "log_snr")),
    ],
)
def test_schedulers_of_diffusers_ask_the_same_network_with_the_same_noise(scheduler, options, steps, sampler):
    pytest.importorskip("diffusers")
    denoiser = model().denoiser
    found, ours = (
        sample(denoiser, (5, *SHAPE), image_generators(0, range(5)), "cpu")
        for sample in (schedulers.Scheduler(scheduler, steps, **options), sampler())
    )
    assert denoiser.nfe == 2 * steps
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-3 if scheduler == "DDPMScheduler" else 0.05)
    assert ours.std() > 0.2


def test_every_peer_samples():
    pytest.importorskip("diffusers")
    for name in few_steps.PEERS:
        peer, subject = few_steps.theirs(name), model()
        assert few_steps.steps_for(peer, 12, subject) == 12
        x = peer.make(12)(subject.denoiser, (40, *SHAPE), image_generators(0, range(40)), "cpu")
        target = mixture.diag64()
        assert (x.flatten(1).mean(0) - target.m[0]).abs().mean() < 0.3, name


def test_diffusers_needs_betas():
    pytest.importorskip("diffusers")
    with pytest.raises(Unavailable, match="betas"):
        few_steps.steps_for(few_steps.theirs("DDIM"), 5, model(DiscreteProcess(Geometric(0.01, 20.0), 50)))


@pytest.mark.parametrize(
    ("words", "nfe", "steps"),
    [
        ("ancestral", 12, 12),
        ("heun", 12, 6),  # 11 evaluations
        ("heun", 13, 7),
        ("pc", 10, 5),
        ("dpm_solver", 1, None),  # both ends of log-SNR must be met
        ("dpm_solver_sde spacing=quadratic", 30, 29),  # more would repeat levels
        ("dpm_solver_sde spacing=quadratic", 31, None),
        ("ddim", 2000, None),  # more than there are levels
    ],
)
def test_steps_are_counted(words, nfe, steps):
    assert few_steps.steps_for(few_steps.ours(words, "fixed_small"), nfe, model()) == steps


def test_words_reach_the_sampler():
    sampler = few_steps.ours("dpm_solver_sde spacing=karras rho=3", None).make(9)
    assert (sampler.steps, sampler.spacing, sampler.rho, sampler.predictor.stochastic) == (9, "karras", 3, True)
    assert few_steps.ours("ancestral", "fixed_small").make(5).predictor.variance == "fixed_small"
    for words, message in (("hein", "heun"), ("ddim spacin=karras", "spacin"), ("ode", "ode is adaptive")):
        with pytest.raises(ConfigError, match=message):
            few_steps.ours(words, None)


def test_summary_and_table():
    found = {"good": {5: 4.0, 10: 2.19, 20: 2.0, 50: 2.3}, "poor": {5: 3.2, 20: 3.0}}
    assert few_steps.summary(found["good"], 2.0) == (2.0, 10, 10)
    assert few_steps.summary(found["poor"], 2.0) == (3.0, 5, None)
    assert few_steps.table(found, [5, 10, 20, 50]).splitlines() == [
        "| sampler | 5 | 10 | 20 | 50 | best | NFE to 10 % of it | NFE to 10 % of the best of all |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| good | 4.00 | 2.19 | 2.00 | 2.30 | 2.00 | 10 | 10 |",
        "| poor | 3.20 |  | 3.00 |  | 3.00 | 5 |  |",
    ]


def test_deviation_of_a_mean():
    # 0.9 and 1.1 have the standard deviation 0.1 sqrt(2), and their mean that over sqrt(2)
    records = [{"value": 1.0, "repeats": [0.9, 1.1]}, {"value": 5.0, "repeats": [4.5, 5.5]}]
    assert few_steps.deviation(records) == pytest.approx(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(few_steps.deviation([{"value": 1.0}])) and math.isnan(few_steps.deviation([]))


def save(run):
    """A checkpoint of an untrained model of digits in a run directory, and its configuration."""
    config = composed("network.channels=6", "metric.features.steps=5", f"paths.root_dir={run.parent}")
    config |= {"choices": {"model": "ddpm", "data": "digits"}, "overrides": ["network.channels=6", "loss=simple"]}
    network = instantiate(config["model"], "model")
    weights = dict(network.network.named_parameters())
    contents = {"state_dict": network.state_dict(), "global_step": 1, "config": config, "ema": {"weights": weights}}
    AtomicCheckpointIO().save_checkpoint(contents, run / "checkpoints" / "step_00000001.ckpt")
    OmegaConf.save(OmegaConf.create(config), run / "config.yaml")


def test_command(tmp_path, capsys):
    save(tmp_path / "run")
    arguments = [str(tmp_path / "run"), "--samples", "70", "--seeds", "2", "--nfe", "2", "3", "--batch-size", "70"]
    arguments += ["--sampler", "ddim", "heun", "--peer", "--threads", "1", "--logs", str(tmp_path / "logs")]
    few_steps.main(arguments)
    first = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in first if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["ddim", "heun"] and all(float(row[1]) > 0 for row in rows[2:3])
    assert rows[3][1] == "" and float(rows[3][2]) > 0  # Heun's 3 evaluations are two steps
    assert "Fréchet distances of 70 images, each cell a mean over 2 sets" in first[-1]
    drawn = sorted((tmp_path / "logs").rglob("samples/*.npy"))
    times = [path.stat().st_mtime_ns for path in drawn]
    assert len(drawn) == 3 * 2
    few_steps.main(arguments)
    assert capsys.readouterr().out.splitlines() == first
    assert [path.stat().st_mtime_ns for path in drawn] == times  # kept, not drawn again


def test_students_are_trained_with_equal_steps_and_stand_beside_the_samplers(tmp_path, capsys, monkeypatch):
    save(tmp_path / "run")
    calls = []

    def call(name, words, run):
        calls.append((name, words))
        if name == "consistency_training":
            raise Unavailable("consistency_training: it does not suit this model")
        for place in [run / f"steps_{n:04d}" for n in (4, 2, 1)] if name == "progressive" else [run]:
            save(place)

    monkeypatch.setattr(students, "call", call)
    monkeypatch.setattr(students, "options", lambda group: [*students.METHODS])
    monkeypatch.setattr(
        few_steps, "ours", lambda words, _: ours(words.replace("consistency", "ddim spacing=trailing"), None)
    )
    arguments = [str(tmp_path / "run"), "--samples", "60", "--seeds", "1", "--nfe", "1", "2", "4", "20"]
    arguments += [
        "--sampler",
        "ddim",
        "--peer",
        "--threads",
        "1",
        "--logs",
        str(tmp_path / "logs"),
        "--batch-size",
        "60",
    ]
    arguments += ["--training-steps", "90", "--distil", "progressive", "consistency_tuning", "consistency_training"]
    few_steps.main(arguments)
    said, folder = capsys.readouterr().out, tmp_path / "logs" / "few_steps"
    assert "skipped: consistency_training: it does not suit this model" in said
    rows = {cells[1].strip(): cells[2:6] for line in said.splitlines() if len(cells := line.split("|")) > 6}
    filled = {name: [bool(cell.strip()) for cell in cells] for name, cells in rows.items()}
    assert filled["student: progressive"] == filled["student: consistency_tuning"] == [True, True, True, False]
    assert filled["ddim"] == [False, True, True, True] and "90 training steps for each method" in said
    commands = dict(calls)
    assert {"steps=4,2,1", "trainer.max_steps=30", "warmup_steps=3", "data.batch_size=64"} <= set(
        commands["progressive"]
    )
    teacher = str(tmp_path / "run/checkpoints/step_00000001.ckpt")
    assert {f"init_from='{teacher}'", "network.channels=6", "trainer.max_steps=90"} <= set(
        commands["consistency_tuning"]
    )
    assert "loss=simple" not in commands["consistency_tuning"]
    assert json.loads((folder / "few_steps.json").read_text())["student: progressive"].keys() == {"1", "2", "4"}
    assert (folder / "few_steps.png").is_file() and (folder / "few_steps.md").read_text().strip() in said


def test_a_failing_training_is_reported_by_its_last_line(tmp_path):
    with pytest.raises(Unavailable, match="it: modle is not a key"):
        students.call("it", ["-c", "print('error: modle is not a key'); exit(2)"], tmp_path / "run")
