"""Two processes train what one would: gradients, validation, averages, stopping and going on."""

from __future__ import annotations

import os
import subprocess
import sys

import ddp_job
import pytest
import torch
from ddp_job import STEPS, STOPPED, TOLD
from test_resume import STATE, assert_bit_equal


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """(folder, what each of two ranks saw) of tests/ddp_job.py."""
    folder = tmp_path_factory.mktemp("ddp")
    environment = {k: v for k, v in os.environ.items() if "PYTEST" not in k}
    done = subprocess.run(
        [sys.executable, ddp_job.__file__, str(folder)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("what, accumulate", [("1", 1), ("2", 2), ("compiled", 1)])
def test_two_ranks_of_four_images_have_the_gradient_of_one_of_eight(job, tmp_path, what, accumulate):
    alone = ddp_job.gradients(tmp_path, 1, accumulate)
    assert len(alone) == 2 and max(g.abs().max() for g in alone[0].values()) > 0.01
    for rank in job[1]:
        for step, gradients in enumerate(rank[f"gradients_{what}"]):
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, alone[step][name], rtol=1e-6, atol=1e-6)
    for name in alone[0]:
        assert torch.equal(*(rank[f"gradients_{what}"][1][name] for rank in job[1]))


@pytest.mark.parametrize("batch_size", [500, 198])  # 198 of 199 held-out digits make two batches, of 198 one
def test_validation_is_the_mean_over_all_held_out_items(job, tmp_path, batch_size):
    alone = ddp_job.validations(tmp_path, 1, 100)
    for rank in job[1]:
        assert rank[f"validations_{batch_size}"] == pytest.approx(alone, rel=1e-6)


def test_every_rank_draws_its_own_times_and_noise(job):
    first, second = (rank["whole"]["seen"] for rank in job[1])
    assert len(first) == len(second) == STEPS
    times = torch.stack([t for t, _ in first + second])
    assert len(times.unique(dim=0)) == 2 * STEPS, "no step of any rank has the times of another"
    noise = torch.cat([eps for _, eps in first + second])
    assert noise.shape == (200 * STEPS, 1, 8, 8), "the batch is shared"
    assert len(noise.unique()) > 0.99 * noise.numel()


def test_weights_and_averages_are_bit_equal_on_both_ranks(job):
    first, second = (rank["whole"] for rank in job[1])
    for kind in ("weights", "ema"):
        assert_bit_equal(first[kind], second[kind])
    assert not torch.equal(first["weights"]["conv_in.weight"], first["ema"]["conv_in.weight"])


def test_each_rank_keeps_samples_of_its_own_and_a_checkpoint_those_of_all(job):
    folder, ranks = job
    whole, resumed = ([rank[f"energy_{name}"] for rank in ranks] for name in ("whole", "resumed"))
    assert_bit_equal(whole, resumed)
    assert_bit_equal(whole[0]["weights"], whole[1]["weights"])
    first, second = (rank["replay"] for rank in whole)
    assert first.shape == second.shape == (150, 1, 8, 8) and len(torch.cat([first, second]).unique(dim=0)) == 300
    saved = torch.load(folder / f"energy_whole/checkpoints/step_{STEPS:08d}.ckpt", weights_only=True)["loss"]["replay"]
    assert torch.equal(saved[0::2], first) and torch.equal(saved[1::2], second)


def test_both_ranks_share_the_losses_of_each_level_and_resume_with_them(job):
    whole, resumed = ([rank[f"moments_{name}"] for rank in job[1]] for name in ("whole", "resumed"))
    assert_bit_equal(whole, resumed)
    assert_bit_equal(whole[0]["weights"], whole[1]["weights"])
    assert whole[0]["losses"].equal(whole[1]["losses"]) and whole[0]["losses"].min() > 0
    assert len(whole[0]["losses"].unique()) == 20  # two of each of ten levels


def test_a_student_and_its_target_are_the_same_on_both_ranks_and_resume(job):
    whole, resumed = ([rank[f"consistency_{name}"] for rank in job[1]] for name in ("whole", "resumed"))
    assert_bit_equal(whole, resumed)
    for kind in ("weights", "target"):
        assert_bit_equal(whole[0][kind], whole[1][kind])
    assert not torch.equal(*(whole[0][kind]["conv_in.weight"] for kind in ("weights", "target")))


def test_stopped_by_a_signal_to_the_first_rank_and_resumed_is_bit_equal_to_unbroken(job):
    folder, ranks = job
    for rank in ranks:
        assert rank["broken"]["stopped"] == f"stopped by SIGTERM at step {STOPPED}" and STOPPED == TOLD + 2
        assert len(rank["broken"]["seen"]) == STOPPED and len(rank["resumed"]["seen"]) == STEPS - STOPPED
    assert [p.name for p in (folder / "broken/checkpoints").iterdir()] == [f"step_{STOPPED:08d}.ckpt"]
    whole, resumed = (
        torch.load(folder / name / f"checkpoints/step_{STEPS:08d}.ckpt", weights_only=True)
        for name in ("whole", "resumed")
    )
    kept = [*(set(STATE) - {"Toy2D"}), "Digits"]
    assert_bit_equal({k: whole[k] for k in kept}, {k: resumed[k] for k in kept})
    assert len(whole["random"]) == 2 and not torch.equal(*(state["cpu"] for state in whole["random"]))
