"""A setting that was typed changes something, or is refused with what works instead."""

from __future__ import annotations

import pytest

from diffusion_lab.config.compose import check
from diffusion_lab.errors import ConfigError


@pytest.mark.parametrize(
    "task, words, message",
    [
        ("sample", "likelihood=flow", "likelihood=flow has no effect without evaluate=true: add it"),
        ("sample", "likelihood=flow likelihood.flow.rtol=0.1", "has no effect without evaluate=true"),
        ("sample", "likelihood_samples=5", "likelihood_samples=5 has no effect without evaluate=true"),
        ("sample", "likelihood_repeats=5", "without evaluate=true"),
        ("sample", "likelihood=flow compare=[ddim]", "without evaluate=true"),
        ("sample", "metric=inception", "without evaluate=true or compare=[...]"),
        ("sample", "metric.samples=100", "without evaluate=true or compare=[...]"),
        ("sample", "compare_steps=[5]", "without compare=[...]"),
        ("sample", "compare=[ddim] png=true", "with compare"),
        ("sample", "compare=[ddim] sampler=heun", "with compare"),
        ("sample", "variance=fixed_small", "nothing chosen here uses it; sampler/predictor=ancestral, likelihood=bound do"),
        ("sample", "sampler=ddim sampler_steps=20", "sampler_steps=20 has no effect: nothing chosen here uses it"),
        ("train", "callback.evaluation.likelihood_samples=50", "set callback.evaluation.evaluator.likelihood_samples"),
        ("train", "callback.evaluation.samples=50", "for the evaluation at the end, set metric.samples"),
        ("train", "callback.evaluation.max_seconds=50", "callback.evaluation.every_n_steps"),
        ("train", "sigma_max=3", "sigma_max=3 has no effect: nothing chosen here uses it; schedule=geometric"),
        ("train", "sampler=ddim sampler_steps=20", "sampler_steps=20 has no effect"),
        ("train", "logger=csv logger.wandb.tags=[a]", "logger.wandb.enabled is false; choose logger=wandb"),
        ("train", "logger=wandb logger.mlflow.name=a", "logger.mlflow.enabled is false; choose logger=mlflow"),
        ("train", "likelihood=flow likelihood.bound.terms=5", "there is no likelihood.bound"),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_refused(task, words, message):
    with pytest.raises(ConfigError) as error:
        check(task, [*words.split(), *(["ckpt_path=x"] if task == "sample" else [])])
    assert "has no effect" in str(error.value) and message in str(error.value), error.value


@pytest.mark.parametrize(
    "task, words",
    [
        ("sample", "likelihood=flow likelihood_samples=5 metric.samples=9 evaluate=true"),
        ("sample", "compare=[ddim] compare_steps=[5] metric.samples=100 variance=fixed_small"),
        ("sample", "sampler=ancestral variance=fixed_small sampler_steps=5"),
        ("sample", "likelihood=trained likelihood_samples=null png=false"),
        ("train", "callback.evaluation.likelihood_samples=50 callback.evaluation.every_n_steps=100"),
        ("train", "schedule=geometric model.output=score sigma_max=3 sampler_steps=9 decay_steps=5"),
        ("train", "variance=fixed_small"),
        ("train", "logger=wandb logger.wandb.tags=[a]"),
    ],
)
def test_what_changes_something_is_not(task, words):
    check(task, [*words.split(), *(["ckpt_path=x"] if task == "sample" else [])])


def test_in_a_sweep_one_job_that_uses_it_is_enough():
    check("train", ["schedule=linear,geometric", "sigma_max=20"], sweep=True)
    with pytest.raises(ConfigError, match="sigma_max=20 has no effect"):
        check("train", ["schedule=linear,cosine", "sigma_max=20"], sweep=True)
