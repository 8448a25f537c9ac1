"""Ranks that torchrun or SLURM starts: one run directory, one answer to what is wrong, no quarrel about signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import psutil
import pytest
from test_checkpoint import MODEL
from test_rank_failures import ROOT, TINY, gone, losses, started

from diffusion_lab.callback import Interrupt
from diffusion_lab.config import environment
from diffusion_lab.config.environment import cluster_ranks
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch import cluster
from diffusion_lab.monkeypatches import set_timeout
from diffusion_lab.run import lightning
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
DRAWN = "0a1b2c3d-0000-4abc-8def-0123456789ab"


@pytest.fixture
def rank(monkeypatch):
    """`rank(**environment)` makes this process one of several."""
    for key in (*TORCHRUN, *SLURM, cluster.RUN):
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)

    def become(**environment: str) -> None:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)

    return become


@pytest.mark.parametrize(
    "environment, name",
    [
        (SLURM, "slurm-4711"),
        ({**SLURM, "SLURM_STEP_ID": "2"}, "slurm-4711-2"),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "mine"}, "torchrun-mine"),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "mine", "GROUP_WORLD_SIZE": "2"}, "torchrun-mine"),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),
        ({}, None),
    ],
)
def test_the_starter_names_the_run(rank, environment, name):
    rank(**environment)
    cluster.agree([])
    assert os.environ.get(cluster.RUN) == name


def test_ranks_of_an_unnamed_torchrun_share_the_time_of_its_start(tmp_path):
    """Two processes of one parent, started a second apart, tell the same; it is when that parent began."""
    one = "from diffusion_lab.launch import cluster; import os; cluster.agree([]); print(os.environ[cluster.RUN])"
    both = (
        f"import subprocess, sys, time\nfor _ in '12': subprocess.run([sys.executable, '-c', {one!r}]); time.sleep(1)"
    )
    before = time.time()
    for drawn in ("none", DRAWN):
        job = started(tmp_path, "-c", both, **{**TORCHRUN, "TORCHELASTIC_RUN_ID": drawn})
        names = job.communicate(timeout=60)[0].split()
        assert len(names) == 2 and names[0] == names[1], names
        assert before - 2 < time.mktime(time.strptime(names[0], "%Y-%m-%d_%H-%M-%S")) < time.time()


@pytest.mark.parametrize("drawn", ["none", DRAWN])
def test_several_nodes_without_a_name_are_refused(rank, drawn):
    rank(**{**TORCHRUN, "TORCHELASTIC_RUN_ID": drawn, "GROUP_WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match=r"--rdzv-id=NAME or hydra.run.dir=DIR"):
        cluster.agree(["data=toy2d"])


def test_several_nodes_with_a_directory_are_fine(rank):
    rank(**{**TORCHRUN, "GROUP_WORLD_SIZE": "2"})
    cluster.agree(["hydra.run.dir=here"])


@pytest.mark.parametrize(
    "devices, nodes, wanted",
    [(2, 1, None), (1, 2, None), ([0, 1], 1, None), ("auto", 1, None), (1, 1, 2), (4, 1, 2), ([0], 1, 2), (4, 2, 1)],
)
def test_as_many_devices_as_processes(rank, devices, nodes, wanted):
    config = {"trainer": {"devices": devices, "num_nodes": nodes}}
    assert ("needs trainer.rdzv_endpoint=HOST:PORT" in str(environment.disagreement(config))) == (nodes > 1)
    config["trainer"]["rdzv_endpoint"] = "node1:29500"
    assert environment.disagreement(config) is None
    wrong = {"trainer": {**config["trainer"], "rdzv_endpoint": "node1"}}
    assert "must be HOST:PORT" in environment.disagreement(wrong)
    rank(**SLURM)
    message = environment.disagreement(config)
    assert (message is None) == (wanted is None)
    assert message is None or (
        message.startswith("srun started 2 processes") and f"trainer.devices={wanted}" in message
    )


def test_what_torchrun_repeats_is_one_signal(rank, monkeypatch, tmp_path):
    class Trainer:
        is_global_zero, world_size, strategy, global_step = False, 2, type("S", (), {"launcher": None}), 3
        callbacks = ()

    for under_torchrun in (True, False):
        interrupt = Interrupt(str(tmp_path))
        interrupt.trainer = Trainer()
        rank(**TORCHRUN) if under_torchrun else monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        interrupt.receive(signal.SIGINT, None)
        if under_torchrun:
            interrupt.receive(signal.SIGINT, None)
            interrupt._since -= 10
        with pytest.raises(KeyboardInterrupt):
            interrupt.receive(signal.SIGINT, None)


def test_slurms_own_queueing_stays_out_of_it(rank):
    assert lightning.cluster() == []
    rank(**SLURM, SLURM_NTASKS_PER_NODE="2")
    (plugin,) = lightning.cluster()
    assert not plugin.auto_requeue and plugin.global_rank() == 1


def test_every_strategy_of_several_ranks_takes_the_timeout():
    from lightning_fabric import strategies as fabric
    from pytorch_lightning import strategies as trainer

    for module in (trainer, fabric):
        for name in ("DDPStrategy", "FSDPStrategy", "ModelParallelStrategy"):
            more = {"parallelize_fn": print} if (module, name) == (fabric, "ModelParallelStrategy") else {}
            kinds = ({"timeout": timedelta(seconds=7)}, {})
            given, late = (getattr(module, name)(**more, **words) for words in kinds)
            set_timeout(late, 7)
            where = [
                [k for k, v in vars(one).items() if isinstance(v, timedelta) and v.seconds == 7]
                for one in (given, late)
            ]
            assert where[0] and where[0] == where[1]
    set_timeout(trainer.SingleDeviceStrategy(device="cpu"), 7)
    with pytest.raises(ConfigError, match="takes no trainer.timeout"):
        set_timeout(type("Other", (), {"num_processes": 2})(), 7)


SRUN = """#!{python}
import os, signal, subprocess, sys, time
from pathlib import Path
words = sys.argv[sys.argv.index("python") + 1:]
Path("words").write_text("\\n".join(words))
run = lambda rank: subprocess.Popen([sys.executable, *words], env={{**os.environ, "SLURM_PROCID": str(rank),
    "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_STEP_ID": "0"}})
ranks = [run(0), run(1)]
while Path("run", "wait").exists() and not Path("run/checkpoints/step_00000004.ckpt").exists():
    time.sleep(0.05)
if Path("run", "wait").exists():
    time.sleep(1)
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    Path("run", "wait").unlink()
sys.exit(max(rank.wait() for rank in ranks))
"""


def test_the_documented_job_is_stopped_in_time_queued_again_and_ends_where_it_should(tmp_path):
    """diffusion_lab/launch/train.sbatch, with an srun and an scontrol of our own."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    scripts = {"srun": SRUN.format(python=sys.executable), "scontrol": '#!/bin/sh\necho "$@" >> queued\n'}
    for name, text in scripts.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    slurm = {"SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    place = {"SLURM_JOB_ID": "4711", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "diffusion_lab"}

    def job() -> tuple[int, str]:
        file = str(ROOT / "diffusion_lab" / "launch" / "train.sbatch")
        batch = ["bash", file, *TINY, "trainer.max_steps=12", "hydra.run.dir=run"]
        environment = {
            **os.environ, **slurm, **place, "PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "DIFFUSION_LAB_PACKAGES": "sweep_witness",
        }  # fmt: skip
        done = subprocess.run(batch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        return done.returncode, done.stdout + done.stderr

    (tmp_path / "run" / "wait").touch()
    code, said = job()
    assert code == 143 and "stopped by SIGTERM at step" in said, said
    assert (tmp_path / "queued").read_text() == "requeue 4711\n" and "Traceback" not in said
    assert not (tmp_path / "run" / "hpc_ckpt_1.ckpt").exists()
    code, said = job()
    assert code == 0 and "resumes from step" in said, said
    assert (tmp_path / "queued").read_text() == "requeue 4711\n" and gone(tmp_path / "run", 5)
    assert [int(step) for step, _ in losses(tmp_path / "run")] == list(range(1, 13))
    seen = [json.loads(p.read_text()) for p in (tmp_path / "run").glob("*.json") if p.stem.isdigit()]
    assert sorted((one["rank"], one["world"], one["step"] > 0) for one in seen) == [
        *((0, 2, False), (0, 2, True), (1, 2, False), (1, 2, True)),
    ]
    words = (tmp_path / "words").read_text().split("\n")
    assert words[:3] == ["train.py", "hydra.run.dir=logs/train/slurm-4711", "ckpt_path=auto"]
    assert {"trainer.num_nodes=1", "trainer.devices=2"} <= {*words}


def test_samples_under_torchrun_end_with_the_rank_that_is_killed(tmp_path):
    config = {"model": MODEL, "choices": {"sampler": "ddim"}}
    state = {"state_dict": instantiate(MODEL, "model").state_dict(), "global_step": 7, "config": config}
    AtomicCheckpointIO().save_checkpoint(state, tmp_path / "step_00000007.ckpt")
    words = ("ckpt_path=step_00000007.ckpt", "weights=raw", "trainer.accelerator=cpu", "batch_size=1")
    job = started(
        tmp_path, "-m", "torch.distributed.run", "--nproc-per-node=2", str(ROOT / "sample.py"), *words,
        "num_samples=100000", "trainer.devices=2", "npz=false",
    )  # fmt: skip
    while len(list(tmp_path.glob("logs/sample/*/samples/*.npy"))) < 3 and job.poll() is None:
        time.sleep(0.1)
    (killed,) = (one for one in psutil.Process(job.pid).children() if one.environ().get("RANK") == "1")
    killed.kill()
    said = job.communicate(timeout=60)[0]
    assert job.returncode == 1 and gone(tmp_path, 5), said
    assert "Signal 9 (SIGKILL)" in said
    assert "connection closed by peer" not in said.lower()
    assert cluster_ranks() == ("", 0, 1)
