"""Evaluations while training: which weights, how often, how long at most, and the best checkpoint."""

from __future__ import annotations

import json

import pytest
import pytorch_lightning as pl
import torch
from evaluation_job import evaluator, tiny_model

import diffusion_lab.callback.evaluation as module
from diffusion_lab.callback import EMA, Evaluation
from diffusion_lab.data import Digits
from diffusion_lab.evaluation.estimate import Estimate


class Values(pl.loggers.logger.Logger):
    """Keeps what is logged, by step."""

    name = version = ""

    def __init__(self) -> None:
        self.rows = {}

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, *_):
        pass


def fitted(tmp_path, steps: int = 6, ckpt: str | None = None, ema: bool = True, judge=None, **options):
    """(evaluation, logged rows, model) after a short training on digits."""
    torch.manual_seed(0)
    model, data, rows = tiny_model(), Digits(batch_size=32), Values()
    model.optimizer = lambda p: torch.optim.Adam(p, lr=0.01)
    model.config = {}
    del model.likelihood["flow"]
    judge = judge or evaluator(tmp_path, samples=12, repeats=1, likelihood_samples=3, likelihood_repeats=1)
    data.setup("fit")
    judge.prepare(data, torch.device("cpu"))
    evaluation = Evaluation(judge, str(tmp_path / "run"), **options)
    evaluation.check_best(data, model)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=rows, callbacks=[EMA(0.9), evaluation] if ema else [evaluation],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return evaluation, rows.rows, model


def test_evaluates_both_weights_every_so_many_steps_and_at_the_end(tmp_path, capsys):
    evaluation, rows, model = fitted(tmp_path, every_n_steps=2, weights="both", samples=8)
    assert [step for step in rows if "eval/fd_digits_held_out_8" in rows[step]] == [2, 4]
    assert [step for step in rows if "eval/fd_digits_held_out_12" in rows[step]] == [6]
    for row in rows.values():
        averaged, raw = (row.get(f"eval/{prefix}bound_bits_per_dim") for prefix in ("", "raw_"))
        assert (averaged is None) == (raw is None) and (averaged is None or averaged != raw)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["step"] == 6 and results["weights"] == "both" and 0 < results["training_seconds"] < 60
    assert results["nfe"] == 3 and results["samples_per_second"] > 0
    assert results["metrics"]["raw_fd_digits_held_out_12"]["weights"] == "raw"
    assert results["metrics"]["fd_digits_held_out_12"]["weights"] == "ema"
    # The raw numbers are those of the weights that training left.
    direct = evaluation.evaluator(model, Digits(), tmp_path / "direct")
    assert direct["bound_bits_per_dim"]["value"] == results["metrics"]["raw_bound_bits_per_dim"]["value"]
    assert not (tmp_path / "run/evaluation").exists(), "samples drawn for the numbers do not stay"
    assert "evaluation every 2 steps, about " in capsys.readouterr().out


@pytest.mark.parametrize("best, sign", [("bound_bits_per_dim", 1), ("inception_score", -1)])
def test_the_best_checkpoint_is_the_best(tmp_path, best, sign):
    evaluation, rows, _ = fitted(tmp_path, steps=9, every_n_steps=2, best=best)
    name = next(k for k in rows[2] if k.startswith(f"eval/{best}"))
    values = {step: sign * row[name] for step, row in rows.items() if name in row}
    kept = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert kept["global_step"] == min(values, key=values.get) and set(values) == {2, 4, 6, 8, 9}
    assert evaluation.best_value == sign * min(values.values())


def test_a_resumed_run_remembers_its_best(tmp_path):
    fitted(tmp_path, steps=4, every_n_steps=2, best="bound")
    path = tmp_path / "run/checkpoints/best.ckpt"
    saved = torch.load(path, weights_only=True)
    state = next(v for k, v in saved["callbacks"].items() if k.startswith("Evaluation"))
    saved["callbacks"] = {k: {**state, "best_value": -1.0} if v is state else v for k, v in saved["callbacks"].items()}
    torch.save(saved, tmp_path / "from.ckpt")  # nothing will ever be better than this
    before = path.stat().st_mtime_ns
    evaluation, _, _ = fitted(tmp_path, steps=6, every_n_steps=2, best="bound", ckpt=str(tmp_path / "from.ckpt"))
    assert path.stat().st_mtime_ns == before and evaluation.best_value == -1.0
    assert evaluation.training_seconds > state["training_seconds"] > 0


def test_without_an_average_the_numbers_are_the_raw_ones(tmp_path):
    evaluation, rows, _ = fitted(tmp_path, steps=2, ema=False, weights="ema")
    assert evaluation.results["weights"] == "raw" and list(rows) == [2]
    assert {record["weights"] for record in evaluation.results["metrics"].values()} == {"raw"}


def test_an_evaluation_while_training_is_cut_to_its_time(tmp_path, monkeypatch, capsys):
    judge = evaluator(tmp_path, samples=100, repeats=1, likelihood_samples=40, likelihood_repeats=1)
    # One second for a sample, two for an item of the likelihood.
    monkeypatch.setattr(module, "estimate", lambda model, e: Estimate(e.samples, 2 * e.likelihood_samples))
    evaluation, rows, _ = fitted(tmp_path, steps=4, judge=judge, every_n_steps=2, max_seconds=90.0, at_end=False)
    assert (evaluation.during.samples, evaluation.during.likelihood_samples) == (50, 20)
    assert (evaluation.evaluator.samples, evaluation.evaluator.likelihood_samples) == (100, 40)
    assert "eval/fd_digits_held_out_50" in rows[2] and "about 90 s each, 2 in this run" in capsys.readouterr().out
    assert module.whole(3.0, 5, 100) == 5 and module.whole(3.0, 5, 2) == 2, "never less than a batch"


def test_a_best_that_means_no_metric_or_two_is_refused(tmp_path):
    for best, message in (
        ("fid", r"best=fid is none of fd_digits_held_out_12, kd_digits_held_out_12,"),
        ("raw_fd", "is none of"),
        ("", None),
    ):
        evaluation = Evaluation(evaluator(tmp_path, samples=12), str(tmp_path), every_n_steps=2, best=best or None)
        if message is None:
            evaluation.check_best(Digits(), tiny_model())
            continue
        with pytest.raises(ValueError, match=message):
            evaluation.check_best(Digits(), tiny_model())
    both = evaluator(tmp_path, samples=1000, measures=["frechet", "frechet_infinity"])
    with pytest.raises(ValueError, match="could mean fd_digits_held_out_1k or fd_digits_held_out_infinity"):
        Evaluation(both, str(tmp_path), every_n_steps=2, best="fd").check_best(Digits(), tiny_model())
    with pytest.raises(ValueError, match="set every_n_steps"):
        Evaluation(both, str(tmp_path), best="fd").check_best(Digits(), tiny_model())
