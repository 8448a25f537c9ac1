"""The processes that a run starts: their command lines, how signals reach them, and that none is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import psutil
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from diffusion_lab.config.command_line import override, parse, tidy
from diffusion_lab.launch import process

NASTY = 'it\'s 50%, a=b "c" \\ (d) [e] {f}: ~+$ \\'


def hydra(**changes):
    """A job's node `hydra`."""
    node = {
        "overrides": {"task": ["a=1"], "hydra": ["hydra.mode=MULTIRUN"]},
        "runtime": {"output_dir": "/sweep/0", "cwd": "/here"},
        "job": {"num": 0, "name": "train"},
        "sweep": {"dir": "/sweep"},
        "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"},
        "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
        "output_subdir": ".hydra",
    }
    return OmegaConf.merge(OmegaConf.create(node), OmegaConf.create(changes))


# --- command lines


@pytest.mark.parametrize("value", [NASTY, "", " ", "null", "1,2", "x'", 'x"', "x\\", "a\\'b", "choice(1,2)", "é ∞"])
def test_hydra_reads_every_value_back(value):
    (read,) = OverridesParser.create().parse_overrides([override("hydra.run.dir", value)])
    assert not read.is_sweep_override() and read.value() == value


def test_a_process_gets_the_job_and_not_the_sweep():
    own = [
        *("hydra.mode=MULTIRUN", "hydra.sweep.dir=x", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        *(
            "hydra/sweeper=optuna",
            "hydra.sweeper.n_trials=3",
            "hydra.run.dir=y",
            "hydra.job.chdir=true",
            "hydra.verbose=1",
        ),
        *("hydra.job.name=z", "hydra.output_subdir=u"),
    ]
    task = ["model=ddpm", 'x="a, b=c"', "~logger", "+data.root=${paths.data_dir}/x"]
    node = hydra(overrides={"task": task, "hydra": own}, runtime={"output_dir": f"/{NASTY}"})
    words = process.command(["python", "train.py", "--config-name=other"], node, "ckpt_path=here")
    assert words[:3] == ["python", "train.py", "--config-name=other"]
    assert words[3:7] == task  # as they were given, interpolations included
    assert words[7:11] == ["ckpt_path=here", "hydra.job.chdir=true", "hydra.verbose=1", "hydra.mode=RUN"]
    place, subdir = OverridesParser.create().parse_overrides(words[11:])
    assert (place.key_or_group, place.value()) == ("hydra.run.dir", f"/{NASTY}")
    assert (subdir.key_or_group, subdir.value()) == ("hydra.output_subdir", None)
    assert process.command([], node, subdir=".hydra")[-1] == "hydra.output_subdir=.hydra"


def test_the_program_is_started_again_as_it_was(monkeypatch):
    import __main__

    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(__main__, "__spec__", None)
    words = ["a=1", "--config-dir", "my confs", "-cn", "other", "-m"]
    assert process.program(tidy(words)) == [
        *(sys.executable, os.path.abspath("train.py"), "--config-dir=my confs", "--config-name=other"),
    ]
    assert parse(["-m", "--config-path=p", "a=1", "b=2"]).overrides == ["a=1", "b=2"]
    monkeypatch.setattr(__main__, "__spec__", type("Spec", (), {"name": "pkg.train"}))
    assert process.program(["a=1"]) == [sys.executable, "-m", "pkg.train"]


# --- processes


def script(text):
    return [sys.executable, "-c", text]


def test_a_rank_that_outlives_its_first_is_waited_for_and_then_killed(monkeypatch, tmp_path):
    rank = (
        f"import os, time  # {tmp_path}\n"
        "open('up', 'w'); time.sleep(1)\n"
        "open('parent', 'w').write(str(os.getppid())); time.sleep(SECONDS)"
    )
    first = (
        "import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}])\n"
        "while not os.path.exists('up'): time.sleep(0.01)"
    )
    for seconds, grace in (("0", 30), ("61", 3)):
        monkeypatch.setattr(process, "GRACE", grace)
        words = script(first.format(rank.replace("SECONDS", seconds)))
        begin = time.monotonic()
        assert process.run(words, dict(os.environ), str(tmp_path)) == (0, None)
        assert time.monotonic() - begin < 25
        for name in ("up", "parent"):
            (tmp_path / name).unlink()
    assert not any(str(tmp_path) in command for command in commands())


def commands() -> list[str]:
    """The command lines of all processes."""
    return [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]


def test_a_job_started_by_nohup_goes_on_without_its_terminal(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        words = script("import os, signal; os.kill(os.getpid(), signal.SIGHUP); os.kill(os.getppid(), signal.SIGHUP)")
        assert process.run(words, dict(os.environ), str(tmp_path)) == (0, None)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number, message", [(signal.SIGTERM, [1, 0]), (signal.SIGINT, [1, 1])])
def test_a_signal_reaches_a_job_as_without_a_sweep_and_its_status_comes_back(tmp_path, number, message):
    text = (
        "import os, signal, subprocess, sys, time; n, rank = [], sys.argv[1:]\n"
        f"signal.signal({int(number)}, lambda *_: n.append(1))\n"
        "other = rank or subprocess.Popen([sys.executable, sys.argv[0], '1']); open(f'up{len(rank)}', 'w')\n"
        "end = time.monotonic() + 30\n"
        "while not os.path.exists('sent') and time.monotonic() < end: time.sleep(0.01)\n"
        "time.sleep(0.5); open(f'told{len(rank)}', 'w').write(str(len(n))); sys.exit(41)"
    )
    (tmp_path / "first.py").write_text(text)

    def send():
        while not ((tmp_path / "up0").exists() and (tmp_path / "up1").exists()):
            time.sleep(0.01)
        os.kill(os.getpid(), number)
        (tmp_path / "sent").touch()

    before = signal.getsignal(number)
    threading.Thread(target=send).start()
    words = [sys.executable, str(tmp_path / "first.py")]
    assert process.run(words, dict(os.environ), str(tmp_path)) == (41, number)
    assert [int((tmp_path / f"told{rank}").read_text()) for rank in (0, 1)] == message
    assert signal.getsignal(number) is before
    assert process.run(script("import os; os.kill(os.getpid(), 9)"), dict(os.environ), str(tmp_path)) == (137, None)
