"""How a run was started is kept with it: its options, packages and directory are found again from anywhere."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
import torch
import zygote
from omegaconf import OmegaConf
from printed import commands, paste

import diffusion_lab
from diffusion_lab.config import directories, origin, packages
from diffusion_lab.config.command_line import tidy, with_absolute_directories
from diffusion_lab.config.compose import check
from diffusion_lab.config.instantiate import FURTHER, PATH
from diffusion_lab.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    *("logger=csv", "debug=fast", "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_check_interval=null"),
    *("callback.samples.every_n_steps=null", "callback.evaluation.at_end=false", "sampler_steps=2"),
)
NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width: int = 4, dimensions: int = 2):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x, t):
        return self.layer(torch.cat([x, t[:, None].to(x)], 1))
"""


def absolute(words):
    return with_absolute_directories(tidy(words))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with options and a package of a user's own, a run that was started in it, and what that printed."""
    project, home = tmp_path_factory.mktemp("it's a = project"), tmp_path_factory.mktemp("home")
    for folder in ("my conf/experiment", "my conf/network", "my conf/sampler", "more/experiment", "my_nets"):
        (project / folder).mkdir(parents=True)
    (project / "my_nets/__init__.py").write_text(NETWORK)
    (project / "my conf/network/own.yaml").write_text("_target_: my_nets.Net\nwidth: 4\ndimensions: 2\n")
    own = "# @package _global_\ndefaults:\n  - override /network: own\nseed: 7\n"
    (project / "my conf/experiment/mine.yaml").write_text(own)
    (project / "my conf/sampler/other.yaml").write_text((ROOT / "conf/sampler/ddim.yaml").read_text())
    (project / "more/experiment/also.yaml").write_text("# @package _global_\nsampler_steps: 1\n")
    words = ("--config-dir", "my conf", "data=toy2d", "experiment=mine", *TINY)
    done = zygote.run(ROOT / "train.py", *words, cwd=project, HOME=str(home), **{FURTHER: "my_nets"})
    assert done.returncode == 0, done.stdout + done.stderr
    return project, home, next(project.glob("logs/train/ddpm_toy2d/*")), done.stdout


def test_the_record_tells_where_and_with_what(trained):
    project, _, run, _ = trained
    record = OmegaConf.load(run / "config.yaml").started
    assert record.directory == str(project) and record.packages == ["my_nets"] and record.path == [str(project)]
    assert record.config_dirs == [f"file://{project}/my conf"] and record.program == [str(ROOT / "train.py")]
    contents = torch.load(next(run.glob("checkpoints/*2.ckpt")), weights_only=True)
    assert contents["config"]["started"] == OmegaConf.to_container(record)


def test_every_command_that_is_printed_works_where_it_is_pasted(trained, tmp_path):
    _, home, run, said = trained
    (command,) = commands(said)
    done = paste(command, "num_samples=3", "trainer.accelerator=cpu", cwd=tmp_path, HOME=str(home))
    assert done.returncode == 0 and "sampling 3" in done.stdout, done.stdout + done.stderr
    other = paste(command, "num_samples=2", "sampler=other", cwd=tmp_path, HOME=str(home))
    assert other.returncode == 0 and "_other50_" in other.stdout, "an option of the user's directory"
    longer = paste(origin.command("train", run), "trainer.max_steps=4", cwd=tmp_path, HOME=str(home))
    assert longer.returncode == 2
    assert "reached 0 at step 2; decay_steps=4 extends the decay, decay_steps=2 keeps it at 0" in longer.stderr
    words = ("trainer.max_steps=4", "decay_steps=4")
    resumed = paste(origin.command("train", run), *words, cwd=tmp_path, HOME=str(home))
    assert resumed.returncode == 0 and "resumes from step 2" in resumed.stdout, resumed.stdout + resumed.stderr
    config = OmegaConf.load(run / "config.yaml")
    assert config.seed == 7 and config.started.directory == str(trained[0]) and config.started.packages == ["my_nets"]


def test_a_file_from_elsewhere_builds_no_more_than_it_may(trained, tmp_path):
    _, _, run, said = trained
    stranger = paste(commands(said)[0], "num_samples=2", cwd=tmp_path, HOME=str(tmp_path))
    assert stranger.returncode == 2 and "my_nets.Net is refused" in stranger.stderr
    assert f"its run was started with {FURTHER}=my_nets in {trained[0]}" in stranger.stderr
    record = OmegaConf.to_container(OmegaConf.load(run / "config.yaml").started)
    assert stranger.stderr.count("\n") == 1 and record["seal"]


def test_python_takes_up_packages_that_this_user_has_named(trained, monkeypatch, tmp_path):
    _, home, run, _ = trained
    for variable in (FURTHER, PATH):
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    monkeypatch.setenv("HOME", str(home))
    assert diffusion_lab.load(run).sample(2).shape == (2, 2)
    assert os.environ[FURTHER] == "my_nets"


def test_a_record_that_was_changed_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(FURTHER, "")
    record = {"packages": ["a"], "path": ["/x"], "directory": "/x"}
    record["seal"] = packages.seal({k: v for k, v in record.items()})
    packages.admit({**record, "packages": ["os"]})
    packages.admit({**record, "seal": None})
    packages.admit(None)
    assert os.environ[FURTHER] == ""
    monkeypatch.setenv(PATH, "")
    packages.admit(record)
    assert os.environ[FURTHER] == "a" and os.environ[PATH] == "/x"


@pytest.mark.parametrize(
    "words, message",
    [
        ("experiment=mine data=toy2d warmup_steps=-3", "warmup_steps=-3 must be at least 0"),
        ("experiment=mind", "did you mean mine?"),
        ("sampler=othr", "did you mean other?"),
        ("network=own data=toy2d optimizer.lrr=1", "did you mean optimizer.lr?"),
        ("sampler=other sampler.predictor.eta=2", "sampler.predictor.eta=2 must be in [0, 1]"),
    ],
)
@pytest.mark.parametrize("form", ["--config-dir", "hydra.searchpath"])
def test_the_options_of_a_further_directory_are_checked_like_our_own(trained, monkeypatch, words, message, form):
    monkeypatch.chdir(trained[0])
    monkeypatch.setenv(FURTHER, "my_nets")
    given = ["--config-dir", "my conf"] if form == "--config-dir" else ["hydra.searchpath=['file://my conf']"]
    found = absolute([*given, *words.split()])
    with pytest.raises(ConfigError) as error:
        check("train", found)
    assert message in str(error.value) and "\n" not in str(error.value)
    check("train", absolute([*given, "sampler=other", "experiment=mine", "data=toy2d"]))


def test_directories_become_absolute_overrides_wherever_they_stand(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    search = f"hydra.searchpath=['file://{shlex.quote(str(trained[0]))[1:-1]}/my conf'"
    for words in (["-cd", "my conf", "a=1"], ["a=1", "--config-dir=my conf"]):
        found = absolute(words)
        assert found[0] == "a=1" and directories.listed(found[1]) == [f"file://{trained[0]}/my conf"], search
    both = absolute(["--config-dir=my conf", "hydra.searchpath=[file://more,pkg://my.conf]", "-m"])
    assert both[0] == "--multirun" and directories.listed(both[1]) == [
        f"file://{trained[0]}/my conf", f"file://{trained[0]}/more", "pkg://my.conf",
    ]  # fmt: skip
    check("train", absolute(["--config-dir=my conf", "hydra.searchpath=[file://more]", "experiment=also"]))
    for words in (["--config-dir=none"], ["--config-dir"], ["hydra.searchpath=more"]):
        with pytest.raises(ConfigError, match="is not a directory|needs a value|is a list"):
            absolute(words)


def test_a_directory_that_is_gone_is_told_and_may_be_given_anew(trained):
    record = {"config_dirs": ["file:///no/such", f"file://{trained[0]}/my conf"]}
    with pytest.raises(ConfigError, match="started with --config-dir=/no/such, which no longer exists"):
        origin.restored(record, [], [])
    given = directories.searching([f"{trained[0]}/more"])
    assert origin.restored(record, [], given)[1] == [f"file://{trained[0]}/more", f"file://{trained[0]}/my conf"]
    assert origin.restored({}, [], []) == ([], []), "a run of an edition before"
