"""Going on with a run: in its directory, on its command line, and only with what it was trained with."""

from __future__ import annotations

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import zygote
from omegaconf import OmegaConf
from test_resume import STATE, assert_bit_equal

from diffusion_lab.config import resume
from diffusion_lab.config.resume import training_arguments
from diffusion_lab.errors import ConfigError
from diffusion_lab.run.changes import changes, refuse_changes, refuse_shapes
from diffusion_lab.storage.run_lock import locked

ROOT = Path(__file__).resolve().parents[1]


def run_directory(path: Path, *overrides: str, steps: tuple[int, ...] = (10,), age: float = 0.0, trained=True) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    OmegaConf.save({"seed": 0, "overrides": list(overrides)}, path / "config.yaml")
    for step in steps:
        with zipfile.ZipFile(path / f"checkpoints/step_{step:08d}.ckpt", "w") as archive:
            archive.writestr("step/data.pkl", f"config state_dict {'optimizer_states' * trained}")
    os.utime(path / "checkpoints", (time.time() - age,) * 2)
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_is_gone_on_with_on_its_own_command_line_and_in_its_directory():
    run_directory(Path("logs/train/old"), "seed=5", age=60)
    run_directory(Path("logs/train/new"), "model=score_sde", "sde=ve", "ckpt_path=else", "seed=3", "allow_changes=true")
    place = "hydra.run.dir='logs/train/new'"
    assert training_arguments(["ckpt_path=last"]) == [
        "model=score_sde", "sde=ve", "seed=3", "ckpt_path='logs/train/new/checkpoints/step_00000010.ckpt'", place,
    ]  # fmt: skip
    words = training_arguments(["--cfg=job", "seed=4", "ckpt_path=logs/train/new", "sde=vp", "+trainer.x=1"])
    assert words == [
        "--cfg=job",
        "model=score_sde",
        "seed=4",
        "sde=vp",
        "+trainer.x=1",
        "ckpt_path='logs/train/new/checkpoints/step_00000010.ckpt'",
        place,
    ]
    assert training_arguments(["ckpt_path=last", "paths.log_dir=logs/train/old"])[:2] == [
        "seed=5",
        "paths.log_dir=logs/train/old",
    ]
    run_directory(Path("logs/imported"), trained=False)  # nothing to go on with
    assert training_arguments(["ckpt_path=last"])[-1] == place


def test_a_directory_of_its_own_or_a_sweep_branches_off():
    run_directory(Path("a"), "seed=5")
    assert training_arguments(["ckpt_path=a", "hydra.run.dir=b"]) == [
        "seed=5",
        "hydra.run.dir=b",
        "ckpt_path='a/checkpoints/step_00000010.ckpt'",
    ]
    assert training_arguments(["--multirun", "ckpt_path=a", "seed=1,2"]) == [
        "--multirun",
        "seed=1,2",
        "ckpt_path='a/checkpoints/step_00000010.ckpt'",
    ]
    assert training_arguments(["ckpt_path=a", "hydra.run.dir=./a"]) == [
        "seed=5",
        "hydra.run.dir=./a",
        "ckpt_path='a/checkpoints/step_00000010.ckpt'",
    ]


def test_a_sweep_over_checkpoints_is_left_to_its_jobs():
    run_directory(Path("a"), "seed=5")
    assert training_arguments(["--multirun", "ckpt_path=a,b"]) == ["--multirun", "ckpt_path=a,b"]


def test_ranks_from_outside_have_one_directory_which_may_hold_a_run(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "0"), ("WORLD_SIZE", "2"), ("DIFFUSION_LAB_RUN", "x")):
        monkeypatch.setenv(name, value)
    assert training_arguments(["model=ncsn"]) == ["model=ncsn"]
    run_directory(Path("logs/train/ncsn_digits/x"))
    with pytest.raises(ConfigError, match="ncsn_digits/x holds a run already"):
        training_arguments(["model=ncsn"])


def test_a_file_starts_a_new_run():
    run_directory(Path("a"), "seed=5")
    assert training_arguments(["ckpt_path=a/checkpoints/step_00000010.ckpt", "seed=1"]) == [
        "seed=1", "ckpt_path='a/checkpoints/step_00000010.ckpt'",
    ]  # fmt: skip


def test_auto_begins_in_an_empty_directory_and_goes_on_in_a_full_one():
    assert training_arguments(["ckpt_path=auto", "hydra.run.dir=a", "seed=5"]) == ["hydra.run.dir=a", "seed=5"]
    assert training_arguments(["ckpt_path=auto", "seed=5"]) == ["seed=5"]
    run_directory(Path("killed"), steps=())
    assert training_arguments(["ckpt_path=auto", "hydra.run.dir=killed"]) == ["hydra.run.dir=killed"]
    run_directory(Path("a"), "seed=5", "hydra.run.dir=a")
    assert training_arguments(["ckpt_path=auto", "hydra.run.dir=a", "seed=5"]) == [
        "hydra.run.dir=a",
        "seed=5",
        "ckpt_path='a/checkpoints/step_00000010.ckpt'",
    ]
    run_directory(Path("logs/ncsn/b"))
    place = "hydra.run.dir=logs/${hydra:runtime.choices.model}/b"
    assert (
        training_arguments(["ckpt_path=auto", "model=ncsn", place])[-1]
        == "ckpt_path='logs/ncsn/b/checkpoints/step_00000010.ckpt'"
    )


def test_a_name_with_spaces_and_quotes_stays_one():
    run_directory(Path("it's, a = {run}"), "seed=5")
    words = training_arguments([f"ckpt_path={shlex.quote(chr(34))[1:-1]}it's, a = {{run}}{chr(34)}"])
    values = {o.get_key_element(): resume.text(o) for o in resume.parsed(words)}
    assert values["hydra.run.dir"] == "it's, a = {run}"
    assert values["ckpt_path"] == "it's, a = {run}/checkpoints/step_00000010.ckpt"


@pytest.mark.parametrize(
    "words, message",
    [
        (["hydra.run.dir=a"], "a holds a run already (step_00000020.ckpt): resume it with ckpt_path=a, or"),
        (["hydra.run.dir=a", "ckpt_path=b"], "a holds a run already"),
        (["hydra.run.dir=c"], "c holds a run already (config.yaml): remove it, or choose another hydra.run.dir"),
        (["hydra.run.dir=a", "ckpt_path=a/checkpoints/step_00000010.ckpt"], "a holds a run already"),
        (["ckpt_path=last"], "no run with a checkpoint under"),
        (["--multirun", "ckpt_path=last", "seed=1,2"], "ckpt_path=last in a sweep"),
        (["--multirun", "ckpt_path=auto", "seed=1,2"], "ckpt_path=auto in a sweep"),
        (["seed=(((", "ckpt_path=a"], "mismatched input"),
    ],
)
def test_what_would_write_over_a_run_or_means_none_is_refused(words, message):
    run_directory(Path("a"), steps=(10, 20))
    run_directory(Path("b"))
    run_directory(Path("c"), steps=())  # killed before its first checkpoint
    with pytest.raises(ConfigError) as error:
        training_arguments(words)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_run_that_is_being_trained_is_left_alone():
    with locked(run_directory(Path("a"))), pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        training_arguments(["ckpt_path=a"])


SETTINGS = {
    "seed": 0, "allow_changes": False, "ckpt_path": None, "overrides": [], "paths": {"run_dir": "a"}, "optimizer": {"lr": 0.1},
    "network": {"channels": 8, "checkpoint": True}, "data": {"batch_size": 8, "num_workers": 0, "seed": 0}, "choices": {"sampler": "ddim", "schedule": "linear", "likelihood": "bound", "metric": "digits"},
    "model": {"network": {"channels": 8, "checkpoint": True}, "optimizer": {"lr": 0.1}, "sampler": {"steps": 3}, "decay_steps": 5},
    "trainer": {"max_steps": 5, "gradient_clip_val": None, "overfit_batches": 0, "precision": "32-true", "accumulate_grad_batches": 1, "log_every_n_steps": 5},
    "callback": {"ema": {"decay": 0.9}, "samples": {"count": 4, "run_dir": "a"}, "rank_seed": {"seed": 3}},
}  # fmt: skip


def changed(**values):
    """The settings with other values, by dotted path with __ for the dots."""
    config = OmegaConf.create(SETTINGS)
    for path, value in values.items():
        for key in (path.replace("__", "."), f"model.{path.replace('__', '.')}"):
            if OmegaConf.select(config, key) is not None or key.startswith("trainer"):
                OmegaConf.update(config, key, value)
    return OmegaConf.to_container(config)


@pytest.mark.parametrize(
    "key, value, harmless",
    [
        ("optimizer__lr", 0.2, False), ("network__channels", 16, False), ("seed", 1, False), ("model__decay_steps", 9, False),
        ("choices__schedule", "cosine", False), ("data__batch_size", 16, False), ("trainer__precision", "bf16-mixed", False),
        ("trainer__accumulate_grad_batches", 2, False), ("callback__ema__decay", 0.5, False), ("callback__rank_seed__seed", 4, False),
        ("trainer__gradient_clip_val", 1.0, False), ("trainer__overfit_batches", 1, False),
        ("trainer__max_steps", 9, True), ("trainer__log_every_n_steps", 1, True), ("data__num_workers", 2, True),
        ("callback__samples__count", 9, True), ("model__sampler__steps", 9, True), ("choices__sampler", "heun", True),
        ("choices__likelihood", "flow", True), ("choices__metric", "inception", True), ("network__checkpoint", False, True),
    ],
)  # fmt: skip
def test_what_changes_what_is_trained_is_refused_and_the_rest_is_told(key, value, harmless):
    now, word = changed(**{key: value}), key.replace("__", ".")
    training, ignored = changes(SETTINGS, now)
    (message,) = ignored if harmless else training
    assert not (training if harmless else ignored) and message.startswith(f"{word}={value} (was ")
    if harmless:
        assert refuse_changes(SETTINGS, now, 1, 1) == f"; changed: {message}"
    else:
        with pytest.raises(ConfigError, match=f"this changes what is trained: {word}=.*allow_changes=true"):
            refuse_changes(SETTINGS, now, 1, 1)
        assert word in refuse_changes(SETTINGS, {**now, "allow_changes": True}, 1, 1)


def test_what_only_one_of_them_has_is_a_change_and_a_class_that_was_replaced_is_one():
    now = changed()
    now["optimizer"]["amsgrad"] = True
    del now["callback"]["ema"]
    assert changes(SETTINGS, now)[0] == ["optimizer.amsgrad=True (was None)", "callback.ema.decay=None (was 0.9)"]
    before, now = changed(), changed()
    before["model"]["loss"], now["model"]["loss"] = {"_target_": "a", "x": 1}, {"_target_": "b", "y": 1}
    assert changes(before, now)[0] == ["model.loss._target_=b (was a)"]


def test_the_same_images_a_step_may_be_divided_otherwise():
    now = changed(data__batch_size=4, trainer__accumulate_grad_batches=2)
    training, ignored = changes(SETTINGS, now)
    assert not training and len(ignored) == 2


def test_what_belongs_to_a_start_is_not_told_and_other_ranks_are():
    assert (
        refuse_changes(SETTINGS, changed(paths__run_dir="b", callback__samples__run_dir="b", overrides=["x"]), 2, 2)
        == ""
    )
    assert refuse_changes(SETTINGS, changed(), 0, 2) == "", "of an older checkpoint the ranks are not known"
    assert "2 ranks (was 1): the same batches, different noise" in refuse_changes(SETTINGS, SETTINGS, 1, 2)


def test_weights_that_do_not_fit_are_named():
    state = {"a": torch.zeros(2), "b": torch.zeros(2, 3)}
    refuse_shapes(state, {name: value + 1 for name, value in state.items()})
    with pytest.raises(ConfigError, match=r"do not fit this model: b has shape \(2, 3\) there and \(3, 2\) here"):
        refuse_shapes(state, {**state, "b": torch.zeros(3, 2)})
    with pytest.raises(ConfigError, match=r"b has shape \(2, 3\) there and None here"):
        refuse_shapes(state, {"a": state["a"]})


TINY = [
    "data=toy2d", "data.train_size=500", "data.held_out_size=20", "network.width=16", "network.depth=1", "logger=csv", "sampler_steps=3",
    "trainer.accelerator=cpu", "trainer.max_steps=400", "trainer.log_every_n_steps=8", "trainer.val_check_interval=30",
    "callback.checkpoint.every_n_steps=50", "callback.checkpoint.keep=null", "callback.samples.every_n_steps=null",
    "callback.evaluation.at_end=false", "callback.posthoc_ema.every_n_steps=30",
]  # fmt: skip


def train(*words: str, code: int = 0) -> str:
    done = zygote.run(ROOT / "train.py", *words, cwd=Path.cwd())
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def numbers(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if "per_second" not in k and "memory" not in k}
            for row in csv.DictReader(file)
        ]


def test_a_killed_run_ends_as_an_unbroken_one_did_numbers_and_all():
    """Killed after a checkpoint and some more rows; the newest checkpoint is then cut; a row lies across the next one."""
    train(*TINY, "hydra.run.dir=whole")
    part = Path("logs/train/part")
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *TINY, f"hydra.run.dir={part}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    third = part / "checkpoints/step_00000150.ckpt"
    while not third.exists() and process.poll() is None:
        time.sleep(0.005)
    refused = train("ckpt_path=last", code=2) if process.poll() is None else ""
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert refused in (
        "",
        f"error: {part} is in use by process {process.pid} on {os.uname().nodename}: wait for it, stop it, or choose another\n",
    )
    for newer in part.glob("checkpoints/*"):
        if newer >= third:
            newer.write_bytes(newer.read_bytes()[:-1000])
    said = train("ckpt_path=last", "callback.samples.count=9")
    assert "step_00000150.ckpt is truncated or damaged" in said and "resumes from step 100, " in said
    assert "callback.samples.count=9 (was" in said and said.count("00150.ckpt is truncated") == 1, said
    assert [p.name for p in part.parent.iterdir()] == ["part"]
    ends = [torch.load(run / "checkpoints/step_00000400.ckpt", weights_only=True) for run in (Path("whole"), part)]
    assert_bit_equal(*({key: end[key] for key in (*STATE, "posthoc_averages")} for end in ends))
    assert numbers(part) == numbers(Path("whole"))
    assert [int(row["step"]) for row in numbers(part)] == sorted({*range(8, 401, 8), *range(30, 401, 30)})
    assert (part / "config_until_step_00000100.yaml").is_file()


def test_keys_that_a_run_is_too_old_to_have_change_nothing_by_their_defaults():
    now = {
        **SETTINGS,
        "data": {**SETTINGS["data"], "background": 255, "on_corrupt": "refuse", "max_pixels": 178_956_970},
    }
    assert changes(SETTINGS, now) == ([], [])
    now["data"]["background"] = 0
    assert changes(SETTINGS, now) == (["data.background=0 (was 255)"], [])
