"""FSDP on two CPU ranks: the same numbers, files and samples as without sharding."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fsdp_job import NETWORKS, SAMPLES, STEPS, STOP, file, likelihood, model, train
from hydra import compose, initialize_config_dir
from test_resume import assert_bit_equal

from diffusion_lab import checkpoint
from diffusion_lab.config.compose import CONF, check, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.errors import ConfigError
from diffusion_lab.model.sharding import Sharded, blocks

REPOSITORY = Path(__file__).resolve().parents[1]
STATE = ("state_dict", "ema", "posthoc_averages", "optimizer_states", "lr_schedulers", "global_step", "Digits")


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def run(*words: str) -> None:
    """A command in the repository, which ends well and in time; ranks that hang are gone afterwards."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, env=environment, **options) as process:
        try:
            message = process.communicate(timeout=90)[0]
            assert process.returncode == 0, message[-3000:]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder, what one process saw, what each of two saw)."""
    folder = tmp_path_factory.mktemp("fsdp")
    alone = train(folder / "alone", STEPS)[1]
    run("tests/fsdp_job.py", str(folder))
    return folder, alone, [read(folder / f"rank_{rank}.pt") for rank in range(2)]


def assert_close(a, b, tolerance, path="") -> None:
    """Equal containers of tensors that differ by less than `tolerance` each."""
    if isinstance(a, torch.Tensor):
        assert (a.shape, a.dtype, type(a)) == (b.shape, b.dtype, type(b)), path
        assert (a.double() - b.double()).abs().max() < tolerance, path
    elif isinstance(a, (dict, list)):
        assert type(a) is type(b) and len(a) == len(b), path
        pairs = enumerate(a) if isinstance(a, list) else [(key, a[key]) for key in a]
        assert isinstance(a, list) or list(a) == list(b), path
        for key, value in pairs:
            assert_close(value, b[key], tolerance, f"{path}/{key}")
    else:
        assert a == b, path


def test_gradients_of_every_network_are_those_of_one_process(runs):
    """Also accumulated over two batches; NaN is a parameter without one."""
    for found in (rank["differences"] for rank in runs[2]):
        assert found.keys() == NETWORKS.keys() and all(value < 1e-5 for value in found.values()), found


@pytest.mark.parametrize("name", ["unet", "ncsnpp", "ncsn"])
def test_most_of_a_network_is_gathered_block_by_block(name):
    network = NETWORKS[name][0]()
    found = list(blocks(network))
    sizes = [sum(p.numel() for p in block.parameters()) for block in found]
    parameters = [p for block in found for p in block.parameters()]
    assert len({id(p) for p in parameters}) == len(parameters), "a block is in another"
    whole = sum(p.numel() for p in network.parameters())
    assert max(sizes) < 0.5 * whole and sum(sizes) > 0.7 * whole


@pytest.mark.parametrize("step", [STOP, STEPS])
def test_checkpoints_are_those_of_one_process(runs, step):
    alone, dealt = read(file(runs[0] / "alone", step)), read(file(runs[0] / "unbroken", step))
    assert alone.keys() == dealt.keys()
    assert_close({k: alone[k] for k in STATE}, {k: dealt[k] for k in STATE}, 1e-6)


def test_every_rank_has_the_global_norm_and_every_held_out_item_counts_once(runs):
    _, alone, seen = runs
    for rank in seen:
        assert rank["unbroken"]["norms"] == pytest.approx(alone["norms"], rel=1e-5) and len(alone["norms"]) > STOP
        assert rank["unbroken"]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert [rank["unbroken"]["batches"] for rank in seen] == [[2, 2], [1, 1]], "the test wants unequal shares"


def test_a_rank_holds_its_shard_only(runs):
    for run in ("unbroken", "resumed"):
        for name, whole in runs[1]["held"].items():
            parts = [rank[run]["held"][name] / whole for rank in runs[2]]
            assert all(0.45 < part < 0.55 for part in parts), (run, name, parts)


def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(runs):
    unbroken, resumed = (read(file(runs[0] / name, STEPS)) for name in ("unbroken", "resumed"))
    assert_bit_equal({k: unbroken[k] for k in (*STATE, "random")}, {k: resumed[k] for k in (*STATE, "random")})
    assert len(unbroken["random"]) == 2
    names = [f"ema/step_{step:08d}.pt" for step in range(STOP + 1, STEPS + 1)]
    assert_bit_equal(*([read(runs[0] / run / name) for name in names] for run in ("unbroken", "resumed")))


def test_sharded_and_unsharded_runs_resume_each_other(runs, tmp_path):
    folder = runs[0]
    wanted = read(file(folder / "alone", STEPS))
    back = read(train(tmp_path, STEPS, file(folder / "unbroken", STOP))[0])
    for other in (read(file(folder / "of_one", STEPS)), back):
        assert_close({k: wanted[k] for k in STATE}, {k: other[k] for k in STATE}, 1e-6)


def test_samples_of_a_single_rank_are_those_of_the_checkpoint(runs):
    """One rank drew and the other did nothing: had it waited, there would be no end."""
    folder, _, (first, second) = runs
    seen = first["unbroken"]
    assert "samples" not in second["unbroken"] and len(seen["samples"]) == SAMPLES
    loaded = checkpoint.load(file(folder / "unbroken", STEPS))
    assert (torch.cat([loaded.sample(1, first=i) for i in range(SAMPLES)]) - seen["samples"]).abs().max() < 1e-5
    assert not torch.equal(model().sample(SAMPLES), seen["samples"])
    # The solver makes a thousand times as much of how a network rounds whose parameters lie elsewhere in memory.
    torch.testing.assert_close(seen["likelihood"], likelihood(loaded), rtol=3e-4, atol=0)
    assert ((likelihood(model()) / seen["likelihood"] - 1).abs() > 3e-3).all(), "any weights would do"


def test_full_checkpoints_are_written_by_the_first_rank(runs):
    first, second = (rank["unbroken"]["written"] for rank in runs[2])
    assert first == [f"step_{step:08d}.ckpt" for step in (STOP, STEPS)] and second == []


def test_the_configuration_means_it():
    words = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "data=toy2d"]
    check("train", words)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = plain(compose("train", words))["trainer"]
    for key in ("timeout", "max_restarts", "rdzv_endpoint"):
        del node[key]
    assert isinstance(instantiate(node).strategy, Sharded)


@pytest.mark.parametrize("words, message", [
    (["trainer.precision=16-mixed"], "use 32-true, bf16-mixed or bf16-true"),
    (["network=energy_small"], "Energy needs second derivatives, which trainer=fsdp does not support: use trainer=default"),
    (["trainer=default", "trainer.strategy=fsdp"], "use trainer=fsdp"),
])  # fmt: skip
def test_impossible_settings_are_refused_in_one_line(words, message):
    with pytest.raises(ConfigError, match=message) as refused:
        check("train", ["trainer=fsdp", *words])
    assert "\n" not in str(refused.value)
