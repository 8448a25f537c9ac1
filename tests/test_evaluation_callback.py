"""Evaluations while training: which weights, how often, how long at most, and the best checkpoint."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from evaluation_job import evaluator, tiny_model

import diffusion_lab.callback.evaluation as module
import diffusion_lab.evaluation.duration as estimation
from diffusion_lab.callback import EMA, Checkpoint, Evaluation
from diffusion_lab.callback.interrupt import Stopped
from diffusion_lab.data import Digits
from diffusion_lab.evaluation import ChunkedArray, Evaluator
from diffusion_lab.evaluation.duration import Duration, estimate_duration, network_calls
from diffusion_lab.likelihood import FlowLikelihood
from diffusion_lab.metric import ClassifierFeatures
from diffusion_lab.sampler import DDIM, EDM, Langevin, Sampler


class Values(pl.loggers.logger.Logger):
    """Keeps what is logged, by step."""

    name = version = ""

    def __init__(self) -> None:
        self.rows = {}

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, *_):
        pass


def fitted(
    tmp_path,
    steps: int = 6,
    ckpt: str | None = None,
    ema: bool = True,
    judge=None,
    accumulate: int = 1,
    more=(),
    **options,
):
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
        max_steps=steps, accelerator="cpu", logger=rows, callbacks=[EMA(0.9), *more, evaluation] if ema else [evaluation],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=tmp_path, limit_val_batches=0, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return evaluation, rows.rows, model


def test_evaluates_both_weights_every_so_many_steps_and_at_the_end(tmp_path, capsys):
    evaluation, rows, model = fitted(tmp_path, every_n_steps=2, weights="both", samples=8)
    assert [step for step in rows if "eval/fd_digits_held_out_8" in rows[step]] == [2, 4]
    assert [step for step in rows if "eval/fd_digits_held_out_12" in rows[step]] == [6]
    for step, name in ((2, "fd_digits_held_out_8"), (6, "fd_digits_held_out_12"), (6, "raw_fd_digits_held_out_12")):
        chart = "raw_fd" if name.startswith("raw") else "fd"
        assert rows[step][f"eval/{chart}"] == rows[step][f"eval/{name}"], (
            "a chart for all counts, beside the exact name"
        )
    for row in rows.values():
        averaged, raw = (row.get(f"eval/{prefix}bound_bits_per_dim") for prefix in ("", "raw_"))
        assert (averaged is None) == (raw is None) and (averaged is None or averaged != raw)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["step"] == 6 and results["weights"] == "both" and 0 < results["training_seconds"] < 60
    assert results["nfe"] == 3 and results["samples_per_second"] > 0
    parts = results["seconds_by_part"]
    assert list(parts) == ["sampling", "features", "reference", "metrics", "likelihood"] and min(parts.values()) > 0
    assert 0.5 * results["seconds"] < sum(parts.values()) < results["seconds"] + 0.1, "this evaluation's alone"
    assert results["metrics"]["raw_fd_digits_held_out_12"]["weights"] == "raw"
    assert results["metrics"]["fd_digits_held_out_12"]["weights"] == "ema"
    assert results["metrics"]["fd_digits_held_out_12"]["real_images"] == 12, "not those of the smaller evaluations"
    # The raw numbers are those of the weights that training left.
    direct = evaluation.evaluator(model, Digits(), tmp_path / "direct")
    assert direct["bound_bits_per_dim"]["value"] == results["metrics"]["raw_bound_bits_per_dim"]["value"]
    assert not (tmp_path / "run/evaluation").exists(), "samples drawn for the numbers do not stay"
    out = capsys.readouterr().out
    assert "evaluation every 2 steps, about " in out
    assert out.count("evaluation: 12 samples against held_out (frechet, kernel, ") == 1 and "writes results.json" in out


@pytest.mark.parametrize("best, sign", [("bound_bits_per_dim", 1), ("inception_score", -1)])
def test_the_best_checkpoint_is_the_best(tmp_path, best, sign):
    evaluation, rows, _ = fitted(tmp_path, steps=9, every_n_steps=2, best=best)
    name = next(k for k in rows[2] if k.startswith(f"eval/{best}"))
    values = {step: sign * row[name] for step, row in rows.items() if name in row}
    kept = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert kept["global_step"] == min(values, key=values.get) and set(values) == {2, 4, 6, 8, 9}
    assert evaluation.best_value == sign * min(values.values())


def test_a_resumed_run_remembers_its_best(tmp_path):
    first, _, _ = fitted(tmp_path, steps=4, every_n_steps=2, best="bound")
    path = tmp_path / "run/checkpoints/best.ckpt"
    saved = torch.load(path, weights_only=True)
    state = next(v for k, v in saved["callbacks"].items() if k.startswith("Evaluation"))
    assert (state["best_name"], state["best_value"]) == ("bound_bits_per_dim", first.best_value)
    saved["callbacks"] = {k: {**state, "best_value": -1.0} if v is state else v for k, v in saved["callbacks"].items()}
    torch.save(saved, tmp_path / "from.ckpt")  # nothing will ever be better than this
    before = path.stat().st_mtime_ns
    evaluation, _, _ = fitted(tmp_path, steps=6, every_n_steps=2, best="bound", ckpt=str(tmp_path / "from.ckpt"))
    assert path.stat().st_mtime_ns == before and evaluation.best_value == -1.0
    assert evaluation.training_seconds > state["training_seconds"] > 0
    other, rows, _ = fitted(tmp_path, steps=6, every_n_steps=2, best="fd", ckpt=str(tmp_path / "from.ckpt"))
    assert other.best_value == min(row["eval/fd_digits_held_out_12"] for row in rows.values()), "of another metric"


def test_an_evaluation_that_was_cut_short_is_made_by_the_run_that_goes_on(tmp_path, monkeypatch):
    """It is begun with the training saved, and counts as made when it is."""

    def stop(self, trainer, *_):
        raise Stopped(15, trainer.global_step)

    saving = {"every_n_steps": 2, "best": "bound"}
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Evaluation, "measure", stop)
        fitted(tmp_path, steps=5, more=[Checkpoint(str(tmp_path / "run"))], **saving)
    folder = tmp_path / "run/checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step_00000002.ckpt"]
    _, rows, _ = fitted(tmp_path, steps=3, ckpt=str(folder / "step_00000002.ckpt"), **saving)
    assert [step for step, row in rows.items() if "eval/bound_bits_per_dim" in row] == [2, 3]
    _, rows, _ = fitted(tmp_path, steps=5, ckpt=str(folder / "best.ckpt"), **saving)
    assert [step for step, row in rows.items() if "eval/bound_bits_per_dim" in row] == [4, 5]


def test_without_an_average_the_numbers_are_the_raw_ones(tmp_path):
    stale = ChunkedArray(tmp_path / "run/evaluation/step_00000002_raw/samples", 5)  # of an earlier run of these steps
    for chunk in stale.ranges(12):
        stale.write(chunk, torch.zeros(len(chunk), 8, 8, 1, dtype=torch.uint8))
    evaluation, rows, model = fitted(tmp_path, steps=2, ema=False, weights="both")
    assert evaluation.results["weights"] == "raw" and list(rows) == [2]
    assert {record["weights"] for record in evaluation.results["metrics"].values()} == {"raw"}
    assert not any(name.startswith("raw_") for name in evaluation.results["metrics"]), "once is enough"
    direct = evaluation.evaluator(model, Digits(), tmp_path / "direct")
    assert direct["fd_digits_held_out_12"]["value"] == evaluation.results["metrics"]["fd_digits_held_out_12"]["value"]


def test_an_evaluation_that_fails_ends_no_training_and_loses_no_numbers(tmp_path, capsys):
    class Fails(Evaluator):
        def __call__(self, model, data, folder):
            if folder.name.startswith("step_00000004"):
                raise ValueError("the samples are not finite")
            return super().__call__(model, data, folder)

    features = ClassifierFeatures(steps=5)
    judge = Fails(features, samples=8, likelihood_samples=2, batch_size=5, cache=str(tmp_path / "cache"))
    evaluation, rows, _ = fitted(tmp_path, steps=4, judge=judge, every_n_steps=2)
    assert "evaluation at step 4 failed, training continues: the samples are not finite" in capsys.readouterr().out
    assert [step for step, row in rows.items() if "eval/fd_digits_held_out_8" in row] == [2]
    assert json.loads((tmp_path / "run/results.json").read_text())["step"] == 2


def test_the_seconds_of_training_leave_out_those_of_evaluations(tmp_path, monkeypatch):
    evaluation, clock = Evaluation(evaluator(tmp_path), str(tmp_path)), [1000.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def measured(*_):
        clock[0] += 50
        return {}

    evaluation.measure, evaluation._since = measured, 900.0
    trainer = SimpleNamespace(callbacks=[], global_step=1, is_global_zero=False)
    evaluation.evaluate(trainer, SimpleNamespace(unsharded=nullcontext), evaluation.during)
    assert evaluation.results["training_seconds"] == 100 and evaluation.results["seconds"] == 50
    clock[0] += 7
    assert evaluation.training_seconds == 107


def test_batches_of_an_accumulation_are_one_step(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(Evaluation, "evaluate", lambda self, trainer, *_: seen.append(trainer.global_step))
    monkeypatch.setattr(module, "LONG", 3)
    evaluation, _, _ = fitted(tmp_path, steps=3, accumulate=2, every_n_steps=1, likelihood_samples=0)
    assert seen == [1, 2, 3] and "evaluation at the end: about" in capsys.readouterr().out
    assert (evaluation.during.likelihood_samples, evaluation.evaluator.likelihood_samples) == (0, 3)


def test_an_evaluation_while_training_is_cut_to_its_time(tmp_path, monkeypatch, capsys):
    judge = evaluator(tmp_path, samples=100, repeats=1, likelihood_samples=40, likelihood_repeats=1)
    # One second for a sample, two for an item of the likelihood.
    for place in (module, estimation):
        monkeypatch.setattr(
            place, "estimate_duration", lambda model, e, data, passes=1: Duration(e.samples, 2 * e.likelihood_samples)
        )
    evaluation, rows, _ = fitted(tmp_path, steps=4, judge=judge, every_n_steps=2, max_seconds=90.0, at_end=False)
    assert (evaluation.during.samples, evaluation.during.likelihood_samples) == (50, 20)
    assert (evaluation.evaluator.samples, evaluation.evaluator.likelihood_samples) == (100, 40)
    assert "eval/fd_digits_held_out_50" in rows[2] and "about 90 s each, 2 in this run" in capsys.readouterr().out
    assert estimation.round_to_batches(3.0, 5, 100) == 5 and estimation.round_to_batches(3.0, 5, 2) == 2, (
        "never less than a batch"
    )
    assert estimation.round_to_batches(59.0, 5, 100) == 55, "whole batches"


def test_a_best_that_means_no_metric_or_two_is_refused(tmp_path):
    for best, message in (
        ("fid", r"best=fid is not one of fd_digits_held_out_12, kd_digits_held_out_12,"),
        ("raw_fd", "is not one of"),
        ("fd_dig", "is not one of"),
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


# --------------------------------------------------------------------------- estimates


@pytest.mark.parametrize("sampler", [
    Sampler(DDIM(), steps=7), Sampler(DDIM(), steps=3, denoise=False), Sampler(EDM(), steps=5, spacing="karras"),
    Sampler(None, Langevin(steps=2), steps=4), Sampler(DDIM(), Langevin(steps=1), steps=6),
])  # fmt: skip
def test_network_calls_are_counted_beforehand_as_they_will_be(sampler):
    model = tiny_model()
    model.denoiser.nfe = 0
    model.sample(2, sampler=sampler)
    assert network_calls(sampler, model.denoiser, model.shape) == model.denoiser.nfe > 0
    labelled = model.denoiser.given(label=torch.zeros(1, dtype=torch.int64))
    assert network_calls(sampler, labelled, model.shape) == model.denoiser.nfe


def test_an_estimate_grows_with_the_work_and_says_it_in_words(tmp_path, monkeypatch):
    import diffusion_lab.evaluation.duration as module

    monkeypatch.setattr(module, "seconds_per_call", lambda model, batch: 0.01 * batch)
    model = tiny_model()
    del model.likelihood["flow"]
    judge = evaluator(tmp_path, samples=1000, repeats=1, likelihood_samples=100, likelihood_repeats=1)
    message = estimate_duration(model, judge, Digits())
    assert message.samples == pytest.approx(0.01 * 1000 * 3)  # three calls for each sample
    assert message.likelihood == pytest.approx(0.01 * 100 * 3)  # three terms for each item
    model.likelihood["flow"] = FlowLikelihood()
    judge.likelihood_samples = 0
    assert estimate_duration(model, judge, Digits()).likelihood == 0
    judge.repeats, judge.likelihood_samples, judge.likelihood_repeats = 2, 50, 4
    monkeypatch.setattr(module.ranks, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(module.ranks, "from_first", lambda value: value)
    shared = estimate_duration(model, judge, Digits())  # by two
    assert shared.samples == pytest.approx(0.01 * 1000 * 2 * 3 / 2)
    assert shared.likelihood == pytest.approx(0.01 * 50 * 4 * (3 + 300) / 2)  # a flow as 100 calls with gradients
    model.likelihood["bound"].terms = None
    assert module.likelihood_calls(model, "bound") == 1000  # every level
    assert str(Duration(4000, 4000)) == "2.2 h"
    assert str(message) == "33 s" and str(Duration(600, 0)) == "10 min" and str(Duration(36_000, 0)) == "10.0 h"
