"""Disks that are full, closed or limited, and processes that die while they write: what is there is whole."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning
import torch
from test_guard import model_of, trainer_of

from diffusion_lab.callback import Checkpoint, Evaluation, Samples
from diffusion_lab.config.origin import command
from diffusion_lab.data import Toy2D
from diffusion_lab.errors import ConfigError
from diffusion_lab.evaluation import Evaluator
from diffusion_lab.run.failure import Failure, explain, explained
from diffusion_lab.storage import atomic_file, checkpoint_file, run_directory
from diffusion_lab.storage.atomic_file import NotWritten
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO
from diffusion_lab.storage.run_directory import check_directory

ROOT = Path(__file__).resolve().parents[1]
PRIVATE = ["unshare", "-rm", "sh", "-ec"]
mounts = pytest.mark.skipif(
    subprocess.run([*PRIVATE, "mount -t tmpfs none /mnt"], capture_output=True).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="nothing can be mounted here",
)
TINY = "debug=fast data=toy2d network=mlp data.train_size=64 data.held_out_size=64 callback.evaluation.at_end=false"


def points() -> Toy2D:
    return Toy2D(train_size=64, held_out_size=20, batch_size=8)


@contextlib.contextmanager
def file_size_limit(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- killed while saving


def test_whatever_a_process_was_doing_when_it_was_killed_every_checkpoint_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    monkeypatch.setattr(tempfile, "tempdir", None)
    other = os.stat(tempfile.gettempdir()).st_dev
    assert other != os.stat(tmp_path).st_dev or not Path("/dev/shm").is_dir(), "as where the bug was seen"
    folder, chance, cut, newest = tmp_path / "checkpoints", random.Random(0), 0, 0
    contents = {"state_dict": {"w": torch.ones(26_000_000)}, "config": {"model": {}}}  # 104 MB
    start = time.monotonic()
    AtomicCheckpointIO().save_checkpoint({**contents, "global_step": 0}, folder / "step_00000000.ckpt")
    whole = time.monotonic() - start
    for _ in range(12):
        before = set(folder.glob(".*")) if folder.exists() else set()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                save_for_ever(tmp_path, contents, newest)
            os._exit(1)
        deadline = time.monotonic() + 20
        while not (set(folder.glob(".*")) if folder.exists() else set()) - before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 2.5 * whole))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        partial = [path for path in folder.iterdir() if path.suffix != ".ckpt"]
        cut += len(partial)
        assert len(partial) <= 1, "what the one before has left is gone"
        for path in folder.glob("*.ckpt"):
            found = checkpoint_file.read(path)
            assert found["state_dict"]["w"].sum() == 26_000_000 and found["global_step"] == int(path.stem[5:])
            newest = max(newest, found["global_step"])
        if newest:
            assert run_directory.find(tmp_path) == folder / f"step_{newest:08d}.ckpt"
    assert cut >= 3 and newest >= 2, "it was killed within saves, and saved"
    AtomicCheckpointIO().save_checkpoint({}, folder / "last.ckpt")
    assert not [path for path in folder.iterdir() if path.suffix != ".ckpt"]


def save_for_ever(run_dir: Path, contents: dict, step: int) -> None:
    saving = Checkpoint(str(run_dir), keep=2)
    for now in itertools.count(step + 1):
        save = lambda path, now=now: AtomicCheckpointIO().save_checkpoint({**contents, "global_step": now}, path)  # noqa: E731
        saving.save(SimpleNamespace(global_step=now, loggers=[], save_checkpoint=save, is_global_zero=True))


def test_only_what_a_dead_process_was_writing_is_removed(tmp_path):
    dead, mine = tmp_path / ".a.ckpt.0123abcd.partial", tmp_path / ".metrics.partial"
    dead.write_text("half"), mine.write_text("of a user")
    with (
        atomic_file.atomic_write(tmp_path / "a.ckpt") as first,
        atomic_file.atomic_write(tmp_path / "a.ckpt") as second,
    ):
        living = sorted(tmp_path.glob(".a.*"))
        assert len(living) == 2 and not dead.exists(), "two write the same file, each its own"
        first.write(b"first"), second.write(b"second")
        atomic_file.remove_partials(tmp_path)
        assert sorted(tmp_path.glob(".a.*")) == living
    assert sorted(path.name for path in tmp_path.iterdir()) == [".metrics.partial", "a.ckpt"]
    assert (tmp_path / "a.ckpt").read_bytes() == b"first"


def test_the_name_is_on_the_disk_after_the_contents(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda f: (calls.append("folder" if os.path.isdir(f"/proc/self/fd/{f}") else "file"), sync(f))
    )
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append("rename"), replace(self, to)))
    with atomic_file.atomic_write(tmp_path / "a") as file:
        file.write(b"a")
    assert calls == ["file", "rename", "folder"]


# --- nothing can be written


def test_a_checkpoint_that_is_too_large_ends_the_training_in_one_line(tmp_path):
    """RLIMIT_FSIZE, for real: what torch.save raises then says nothing of it."""
    model, trainer = model_of(), trainer_of(tmp_path)
    size = 4 * 4 * sum(p.numel() for p in model.network.parameters())
    model.config = {"trainer": {}}
    trainer.callbacks.append(LimitAt(2, size // 2))
    unlimited = file_size_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[0])
    with unlimited, pytest.raises(Failure) as failure, explained(tmp_path, {}, "train"):
        trainer.fit(model, datamodule=points())
    message = str(failure.value)
    path = tmp_path / "checkpoints" / "step_00000003.ckpt"
    assert message.startswith(f"{path} cannot be written: File too large, it needs ") and failure.value.status == 1
    needed = float(message.partition("needs ")[2].split()[0]) * 1e3
    assert needed == pytest.approx(size, rel=0.2) and f"{size / 2e3:.3g} kB here (ulimit -f)" in message
    assert failure.value.then.startswith(f"the last checkpoint is of step 2; resume:  {command('train', tmp_path)}")
    assert sorted(p.name for p in path.parent.iterdir()) == ["step_00000001.ckpt", "step_00000002.ckpt"]
    assert torch.load(run_directory.find(tmp_path), weights_only=True)["global_step"] == 2


class LimitAt(pytorch_lightning.Callback):
    """Limits the size of files after a step."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def on_train_end(self, trainer, model):
        pass


def test_what_torch_makes_of_a_refusal_is_seen_through_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(3)}, path)
    with file_size_limit(1_000_000):
        with pytest.raises(RuntimeError, match="unexpected pos"), (tmp_path / "b").open("wb") as file:
            torch.save({"a": torch.ones(1_000_000)}, file)
        with pytest.raises(
            NotWritten, match=r"a\.ckpt cannot be written: File too large, it needs 4 MB, a file may have"
        ):
            AtomicCheckpointIO().save_checkpoint({"a": torch.ones(1_000_000)}, path)
    (tmp_path / "b").unlink()
    assert torch.equal(torch.load(path)["a"], torch.zeros(3)) and list(tmp_path.iterdir()) == [path]


def test_room_is_looked_for_before_the_first_step(tmp_path, monkeypatch):
    model, saving = model_of(), Checkpoint(str(tmp_path), keep=2)
    size = 16 * sum(p.numel() for p in model.network.parameters())
    saving.check(points(), model)
    assert not list(tmp_path.iterdir()), "it leaves nothing"
    with file_size_limit(size - 1), pytest.raises(NotWritten, match=r"a file may have .* here: raise ulimit -f"):
        saving.check(points(), model)
    with file_size_limit(size + 100_000):
        saving.check(points(), model)
    free = lambda count: lambda path: SimpleNamespace(free=count)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", free(3 * size))
    saving.check(points(), model)
    monkeypatch.setattr(shutil, "disk_usage", free(3 * size - 1))
    with pytest.raises(
        NotWritten, match=r"3 checkpoints need about .*, .* are free: callback\.checkpoint\.keep=1 keeps"
    ):
        saving.check(points(), model)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.ckpt").write_bytes(b"x")  # which the next ones replace
    saving.check(points(), model)
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"file/run cannot be written: Not a directory; put the run elsewhere"
    ) as error:
        check_directory(tmp_path / "file" / "run")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"file cannot be written: File exists; put the run elsewhere"):
        check_directory(tmp_path / "file")


def test_pictures_and_results_that_cannot_be_written_end_nothing_and_are_said_once(tmp_path, capsys):
    (tmp_path / "samples").write_text("a file where a directory should be")
    (tmp_path / "results.json").mkdir()
    model = model_of(likelihood={})
    more = [Samples(str(tmp_path), every_n_steps=1, count=4), Evaluation(Evaluator(samples=4), str(tmp_path))]
    trainer = trainer_of(tmp_path, steps=3, more=more)
    trainer.fit(model, datamodule=points())
    message = [line for line in capsys.readouterr().out.splitlines() if "skipped, training continues" in line]
    assert trainer.global_step == 3 and len(message) == 2
    assert message[0].startswith(f"{tmp_path}/samples/step_00000001.png") and f"{tmp_path}/results.json" in message[1]
    assert (tmp_path / "samples.png").exists(), "what can be written is"


def test_only_refusals_of_the_disk_are_explained(tmp_path):
    assert explain(OSError(errno.ENOENT, "No such file"), tmp_path, {}) is None
    assert explain(KeyError("a"), tmp_path, {}) is None
    message = explain(OSError(errno.EROFS, "", str(tmp_path / "x")), tmp_path, {})
    assert message == f"{tmp_path}/x cannot be written: Read-only file system"
    with pytest.raises(ZeroDivisionError), atomic_file.atomic_write(tmp_path / "a"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@mounts
def test_a_disk_that_fills_up_ends_the_training_in_one_line_and_what_is_there_loads(tmp_path):
    """train.py on a real tmpfs that something else fills while it trains."""
    words = f"{TINY} trainer.max_steps=100000 callback.checkpoint.every_n_steps=60 callback.samples.every_n_steps=20"
    text = f"""
        mkdir disk; mount -t tmpfs -o size=16m none disk
        {sys.executable} {ROOT}/train.py {words} sampler_steps=2 trainer.val_check_interval=1000000 \
            hydra.run.dir={tmp_path}/disk/run > out 2> err & pid=$!
        until ls disk/run/checkpoints/step_*.ckpt 2> /dev/null; do kill -0 $pid; sleep 0.02; done
        cat /dev/zero > disk/ballast || true
        status=0; wait $pid || status=$?
        echo $status > status; ls -A disk/run/checkpoints > names; cp -r disk/run/. run
    """
    done = subprocess.run([*PRIVATE, text], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    out, err = ((tmp_path / name).read_text() if (tmp_path / name).exists() else "" for name in ("out", "err"))
    assert done.returncode == 0, done.stderr[-1500:] + out + err
    assert (tmp_path / "status").read_text() == "1\n", err
    error = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "Traceback" not in err + out
    assert (
        "cannot be written: No space left on device, it needs" in error[0]
        and "are free; the last checkpoint" in error[0]
    )
    assert out.count("skipped, training continues") <= 1
    names = (tmp_path / "names").read_text().split()
    assert names and all(name.endswith(".ckpt") for name in names), "nothing partial is left"
    steps = [checkpoint_file.read(tmp_path / "run/checkpoints" / name)["global_step"] for name in names]
    assert f"is of step {max(steps)}; resume:  {command('train', tmp_path / 'disk/run')}" in error[0]


@mounts
def test_a_read_only_directory_is_refused_before_anything_else(tmp_path):
    text = f"""
        mkdir run; mount --bind run run; mount -o remount,ro,bind run
        {sys.executable} {ROOT}/train.py {TINY} hydra.run.dir={tmp_path}/run || echo $? > status
    """
    done = subprocess.run([*PRIVATE, text], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (tmp_path / "status").read_text() == "2\n" and done.stdout == ""
    assert done.stderr == (
        f"error: {tmp_path}/run cannot be written: Read-only file system; put the run elsewhere by hydra.run.dir=DIR or "
        "paths.log_dir=DIR\n"
    )


def test_ctrl_c_ends_a_sampling_in_one_line(tmp_path, monkeypatch):
    def interrupted(task):
        with explained(tmp_path, {}, task):
            raise KeyboardInterrupt

    with pytest.raises(Failure, match=r"^interrupted") as failure:
        interrupted("sample")
    assert failure.value.status == 130 and "the same command again resumes" in failure.value.then
    with pytest.raises(KeyboardInterrupt):
        interrupted("train")  # there, a callback saves before
    monkeypatch.setattr("diffusion_lab.run.failure.cluster_ranks", lambda: (0, 1, 2))
    with pytest.raises(KeyboardInterrupt):
        interrupted("sample")  # the agent prints the line


def test_a_file_that_another_process_is_removing_is_written_under_another_name(tmp_path, monkeypatch):
    """It takes the new file for a leftover, and locks it before its writer does."""
    real, threads = atomic_file.lock, []

    def late(file, **settings):
        if not threads:
            other = open(file.name, "rb")  # noqa: SIM115
            assert real(other)
            remove = threading.Timer(0.2, lambda: (os.unlink(file.name), other.close()))
            threads.append(remove)
            remove.start()
        return real(file, **settings)

    monkeypatch.setattr(atomic_file, "lock", late)
    with atomic_file.atomic_write(tmp_path / "file") as file:
        threads[0].join()
        file.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1
