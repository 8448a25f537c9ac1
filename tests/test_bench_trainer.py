"""The benchmarks of the trainer, the optimiser and the data path: all implementations do the same work."""

from __future__ import annotations

import re

import pytest
import pytorch_lightning as pl
import torch

from diffusion_lab.bench import data, optimizer, trainer
from diffusion_lab.bench.benchmark import Setting, run
from diffusion_lab.config.compose import training
from diffusion_lab.run.train import set_up

SMALL = Setting(threads=1, rounds=1, small=True)


def test_all_ways_of_training_come_to_the_same_weights():
    (benchmark,) = trainer.benchmarks(SMALL)
    result = run(benchmark, SMALL)
    assert list(result.measured) == list(benchmark.implementations) and "bit for bit" in result.note
    assert re.search(r"ours: .* less bare Lightning, .*: -?\d+ us a step", result.note)


def test_the_clock_starts_after_the_warm_up_and_ends_the_training():
    laps = trainer.Laps(lambda *_: torch.zeros(()), warm=3, length=2, count=2)
    with pytest.raises(trainer.Done):
        for _ in range(100):
            laps()
    assert laps.calls == 7 and len(laps.times) == 3 and laps.seconds > 0


def test_all_averages_are_the_same():
    (benchmark,) = optimizer.benchmarks(SMALL)
    result = run(benchmark, SMALL)
    assert "default Adam, score_sde_pytorch's EMA" in result.left_out  # no clone here, and perhaps no other program
    assert next(iter(result.measured)).startswith("ours") and [*result.measured][-1].startswith("hand-written")
    assert float(re.search(r"at most (\S+) of", result.note)[1]) < 1e-7


def test_all_feed_the_stored_images_or_their_mirror_images():
    (benchmark,) = data.benchmarks(SMALL)
    result = run(benchmark, SMALL)
    assert result.note.startswith("equal content") and len(result.measured) == 4
    wrong = torch.rand(4, 3, 32, 32), torch.arange(4)
    with pytest.raises(AssertionError, match="ours returns other images"):
        data.content({"ours": wrong}, 1024)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The Trainer of a default run, and of one that is profiled."""
    folder = tmp_path_factory.mktemp("made")
    words = [*trainer.TINY, f"paths.log_dir={folder}", f"paths.run_dir={folder}", "callback.evaluation.at_end=false"]
    return [set_up(training([*words, *more]), folder)[2] for more in ([], ["debug=profile"])]


def test_only_a_run_that_is_profiled_has_a_context_for_every_hook(made):
    assert [type(one.profiler).__name__ for one in made] == ["Unprofiled", "SimpleProfiler"]
    with made[0].profiler.profile("a"), made[0].profiler.profile("b"):  # one object for all, also within itself
        pass


def test_no_callback_has_an_empty_hook_in_a_step(made):
    hooks = ["on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"]
    hooks += ["on_before_optimizer_step", "on_train_batch_end"]
    assert len(made[0].callbacks) == 10
    empty = [getattr(pl.Callback, hook) for hook in hooks]
    assert not [c for c in made[0].callbacks for hook in hooks if getattr(type(c), hook) in empty]
    called = [hook for c in made[0].callbacks for hook in hooks if callable(getattr(c, hook))]
    assert called.count("on_train_batch_end") == 7 and called.count("on_train_batch_start") == 2
