"""What is typed: options anywhere, values that need quotes, --help, and words that are no settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from zygote import ROOT, run

from diffusion_lab.config import origin
from diffusion_lab.config.command_line import tidy
from diffusion_lab.config.compose import parsed
from diffusion_lab.config.help import KEYS, help_text
from diffusion_lab.errors import ConfigError


@pytest.mark.parametrize(
    "typed, read",
    [
        ("data=toy2d -m seed=1,2", "--multirun data=toy2d seed=1,2"),
        ("seed=1 --cfg job data=toy2d", "--cfg=job seed=1 data=toy2d"),
        ("-cjob seed=1", "--cfg=job seed=1"),
        ("a=1 --mult", "--multirun a=1"),
        ("--info data=toy2d", "--info=all data=toy2d"),
        ("-c job -p data seed=1", "--cfg=job --package=data seed=1"),
        ("seed=1 -- seed=2", "seed=1 seed=2"),
    ],
)
def test_options_may_stand_anywhere(typed, read):
    assert tidy(typed.split()) == read.split()


@pytest.mark.parametrize(
    "value", ["ü", "/x (1)/y", "epoch=3-step=4.ckpt", "it's", "a;b&c", "#1", "(x)", "a\\b#", "<b>"]
)
def test_a_plain_text_needs_no_quotes(value):
    """What Hydra's grammar has no place for comes through as it was typed."""
    (override,) = parsed(tidy([f"data.root={value}"]))
    found = override.value()
    assert getattr(found, "text", found) == value


def test_a_path_may_begin_in_the_home_directory():
    home = os.path.expanduser("~")
    assert [o.value() for o in parsed(tidy(["data.root=~/x", "+out=~/y"]))] == [f"{home}/x", f"{home}/y"]
    assert tidy(["data.root=~/x,~/y"]) == [f"data.root={home}/x,{home}/y"]


@pytest.mark.parametrize(
    "word, message",
    [
        ("seed", "'seed' is not a setting: write key=value"),
        ("=5", "is not a setting"),
        ("ü=3", "is not a setting"),
        ("+++a=1", "is not a setting"),
        ("trainer.devices=[0,1", "write a list as"),
        ("a={b:1", "a mapping"),
        ("a=${b", "a reference"),
        ("a='x", "and quote a text"),
        ("a=f(1)", "and quote a text"),
        ("--seed=1", "write seed=1, without dashes"),
        ("--fast", "settings are written key=value, without dashes; options: --help"),
        ("-x", "unknown option -x"),
        ("-mseed", "unknown option -mseed"),
        ("--cfg", "--cfg needs a value: choose job, hydra, all"),
        ("--cfg nothing", "--cfg nothing does not exist: choose job"),
        ("--multirun=1", "unknown option --multirun=1"),
        ("--experimental-rerun x", "resume a run with ckpt_path=RUN"),
        ("--run -m", "contradict each other"),
        ("--resolve", "add --cfg job"),
        ("-p data", "add --cfg job"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(word, message):
    with pytest.raises(ConfigError) as error:
        tidy(word.split())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("task", ["train", "sample"])
def test_help_fits_two_screens_and_tells_what_the_command_takes(task):
    message = help_text(task, ["--help"])
    lines = message.splitlines()
    assert len(lines) <= 105 and max(map(len, lines)) <= 120
    assert ("schedule=" in message) == ("model=" in message.replace("--help model=NAME", "")) == (task == "train")
    about = {
        "train": "likelihood= both                  The variational bound and",
        "sample": "sampler=    ancestral             Ancestral sampling of DDPM",
    }
    for key in (*KEYS[task], "seed", about[task]):
        assert any(line.startswith(key) for line in lines), key
    assert ("            trained" in message) == (task == "sample")
    assert any(line.startswith("guidance=") for line in lines) and f"python {task}.py ckpt_path=last" in message
    assert all(name in message for name in ("ddim", "heun", "unipc"))
    assert not any(word in message for word in ("small/", "=${"))
    if task == "train":  # of all samplers, not of the first in the alphabet that has steps of its own
        assert "sampler.steps=null                      number of timesteps; null: every level, or 1000" in message


def test_an_installed_program_is_named_as_it_is_started(monkeypatch, tmp_path):
    program = tmp_path / "diffusion-lab"
    program.touch(mode=0o755)
    monkeypatch.setattr(origin, "program", lambda task: ["-m", f"diffusion_lab.{task}"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for path, name in ((str(tmp_path), "diffusion-lab train"), ("/nowhere", "python -m diffusion_lab.train")):
        monkeypatch.setenv("PATH", path)
        assert f"  {name} ckpt_path=last" in help_text("train", ["--help"]) and f"More:  {name} --help" in help_text(
            "train", []
        )
        python = f"{tmp_path}/python -m diffusion_lab.train"
        assert origin.command("train", "last") == f"{name if path == str(tmp_path) else python} ckpt_path=last"


def test_python_is_named_as_it_is_found(monkeypatch, tmp_path):
    """`diffusion-lab` is started by bin/python3, of which bin/python is another name; that of another venv is not."""
    for name in ("venv", "other"):
        (tmp_path / name).mkdir()
        for link in ("python", "python3"):
            (tmp_path / name / link).symlink_to(Path(sys.executable).resolve())
    monkeypatch.setattr(origin, "program", lambda task: ["/checkout/sample.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python3"))
    for place, name in (
        ("venv", "python"),
        ("other", f"{tmp_path}/venv/python3"),
        ("none", f"{tmp_path}/venv/python3"),
    ):
        monkeypatch.setenv("PATH", str(tmp_path / place))
        assert origin.command("sample", "/run") == f"{name} /checkout/sample.py ckpt_path=/run"


def test_help_of_a_group_an_option_and_a_key():
    message = help_text("train", ["sampler", "-h"])
    assert "sampler=ddim\n  # DDIM: Song, Meng & Ermon 2021, Eq. 12\n" in message and "number of timesteps" in message
    assert help_text("train", ["sampler=ddim"]) in message and help_text("train", ["schedule=cosine"]).startswith(
        "schedule=cosine\n"
    )
    assert "sampler=trained" not in message and "sampler=trained\n" in help_text("sample", ["sampler"])
    assert len({text.index("loss.weighting=") for text in help_text("train", ["weighting"]).splitlines()}) == 1
    assert "optimizer.lr=2.0e-4" in help_text("train", ["lr"]) and "learning rate" in help_text(
        "train", ["optimizer.lr"]
    )
    for task, word, close in (
        ("train", "samplr", "sampler"),
        ("train", "_target_", "no such group or key"),
        ("sample", "model", "groups: sampler"),
        ("train", "data=digit", "digits"),
    ):
        with pytest.raises(ConfigError, match=close):
            help_text(task, [word])


def test_values_of_other_options_are_no_topics_of_help():
    conf = str(ROOT / "conf")
    assert help_text("train", ["--config-dir", conf, "--help", "schedule"]) == help_text(
        "train", ["--help", "schedule"]
    )


@pytest.mark.parametrize("words", [["--config-dir", "{}"], ["hydra.searchpath=[file://{}]"]])
def test_help_knows_the_options_of_further_directories(tmp_path, words):
    for group, name, text in (
        ("schedule", "mine", "# my own noise\n_target_: mine.Noise\ncurve: 3  # how much"),
        ("flavour", "sweet", "# not sour\nsugar: 1  # spoons"),
    ):
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{name}.yaml").write_text(text)
    words = [word.format(tmp_path) for word in words]
    assert "  mine                  my own noise" in help_text("train", [*words, "--help"])
    assert help_text("train", [*words, "schedule=mine"]) == "schedule=mine\n  # my own noise\n  curve: 3  # how much"
    assert "schedule.curve=3" in help_text("train", [*words, "curve"]) and "how much" in help_text(
        "train", [*words, "schedule.curve"]
    )
    assert help_text("train", [*words, "flavour"]).startswith("flavour=sweet")
    assert "loss=dsm" in help_text("train", [*words, "loss"])
    with pytest.raises(ConfigError, match="is not a directory"):
        help_text("train", ["--config-dir", str(tmp_path / "nowhere"), "loss"])


def test_the_command_sorts_helps_and_refuses(tmp_path):
    done = run(ROOT / "train.py", "--help", "schedule", cwd=tmp_path)
    assert done.returncode == 0 and "schedule=cosine" in done.stdout
    for words in (
        *(["data=toy2d", "--nothing"], ["seed=1", "oops"], ["--help", "nothing"], ["seed=1", "--cfg", "what"]),
        *(["--cfg", "job", "-p", "dta"], ["--cfg", "job", "--resolve", "seed=${nope}"], ["--config-name=nope"]),
        ["--info", "defaults-tree", "data=nope"],
    ):
        done = run(ROOT / "train.py", *words, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    done = run(ROOT / "train.py", "data=toy2d", "--cfg", "job", "seed=3", "-p", "data", "data.seed=~/x", cwd=tmp_path)
    assert done.returncode == 0 and f"seed: {os.path.expanduser('~/x')}" in done.stdout
    assert not list(tmp_path.iterdir())
