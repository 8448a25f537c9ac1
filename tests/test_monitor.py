"""The rows of the training log: means of what was trained since the last one, also across a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from diffusion_lab.callback import Monitor


class Log:
    def __init__(self) -> None:
        self.rows = {}

    def log_metrics(self, row, step):
        self.rows[step] = row


def trainer(**changes):
    return SimpleNamespace(
        **{
            "global_step": 0, "max_steps": 7, "log_every_n_steps": 3, "accumulate_grad_batches": 1, "world_size": 1,
            "global_rank": 0, "callbacks": [], "loggers": [Log()], "strategy": SimpleNamespace(reduce=lambda x, **_: x),
            "optimizers": [SimpleNamespace(param_groups=[{"lr": 0.5}])], **changes,
        }
    )  # fmt: skip


MODEL = SimpleNamespace(grad_norm=torch.tensor(2.0), device=torch.device("cpu"))


def train(monitor, trainer, batches):
    """The loss of batch b, b = 1, 2, ..., is b."""
    monitor.on_train_start(trainer, MODEL)
    for b in batches:
        trainer.global_step = b // trainer.accumulate_grad_batches
        monitor.on_train_batch_end(trainer, MODEL, {"loss": torch.tensor(float(b))}, (torch.zeros(4),), b - 1)


def losses(trainer):
    return {step: row["train/loss"] for step, row in trainer.loggers[0].rows.items()}


def test_a_row_is_the_mean_since_the_last_one_and_the_last_step_has_one():
    run = trainer()
    train(Monitor(), run, range(1, 8))
    assert losses(run) == {3: 2.0, 6: 5.0, 7: 7.0}
    assert run.loggers[0].rows[3]["train/learning_rate"] == 0.5 and run.loggers[0].rows[3]["train/grad_norm"] == 2.0


def test_memory_is_logged_in_gigabytes():
    run = trainer()
    held = torch.ones(30_000_000)  # 0.12 GB
    train(Monitor(), run, range(1, 8))
    assert held.sum() > 0 and 0.12 < run.loggers[0].rows[3]["train/cpu_memory_gb"] < 100


def test_a_step_of_several_batches_is_their_sum():
    run = trainer(accumulate_grad_batches=2, log_every_n_steps=2, max_steps=4)  # Lightning's losses are divided by 2
    train(Monitor(), run, range(1, 9))
    assert losses(run) == {2: 2 * 2.5, 4: 2 * 6.5}


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_row_that_a_checkpoint_has_cut_is_whole_in_the_run_that_goes_on(stop):
    first, second, checkpoint, kept = Monitor(), Monitor(), {}, trainer()
    train(first, kept, range(1, stop + 1))
    first.on_save_checkpoint(kept, MODEL, checkpoint)
    run = trainer(global_step=stop)
    second.on_load_checkpoint(run, MODEL, checkpoint)
    train(second, run, range(stop + 1, 8))
    assert losses(kept) | losses(run) == {3: 2.0, 6: 5.0, 7: 7.0}


def test_losses_of_other_ranks_or_of_batches_of_another_size_are_left():
    for changes in ({"world_size": 2}, {"accumulate_grad_batches": 2}):
        first, second, checkpoint, kept = Monitor(), Monitor(), {}, trainer()
        train(first, kept, [1])
        first.on_save_checkpoint(kept, MODEL, checkpoint)
        second.on_load_checkpoint(trainer(**changes), MODEL, checkpoint)
        assert second.losses == []
