"""No word of Hydra's reaches the user: what is unknown, left out or not installed is told in one line of ours."""

from __future__ import annotations

import pytest
from zygote import ROOT, run

from diffusion_lab.config.compose import check
from diffusion_lab.config.refusals import without_nulls
from diffusion_lab.errors import ConfigError

HYDRAS = ("Could not", "defaults list", "full_key", "object_type", "Hydra", "Interpolation", "To append", "struct")


@pytest.mark.parametrize(
    "task, words, message",
    [
        ("train", "lr=1e-3", "did you mean optimizer.lr?"),
        ("train", "model.lr=3", "did you mean optimizer.lr?"),
        ("train", "optim.lr=3", "did you mean optimizer.lr?"),
        ("train", "sampler=ddim sampler.eta=0.5", "did you mean sampler.predictor.eta?"),
        ("train", "sampler.eta=0.5", "did you mean sampler.predictor.eta with sampler/predictor=ddim"),
        ("sample", "eta=0.5", "sampler.predictor.eta"),
        ("train", "model=classifier callback.evaluation.at_end=false", "there is no callback.evaluation with what is"),
        ("train", "accelerator=gpu", "did you mean trainer.accelerator?"),
        ("train", "batch_size=3", "did you mean data.batch_size or"),
        ("train", "+foo=1", "foo has no effect: leave it out"),
        ("train", "++foo=1", "foo has no effect: leave it out"),
        ("train", "+logger.foo=1", "logger.foo has no effect: leave it out; existing keys: mlflow, tensorboard, trackio, wandb"),
        ("train", "+callback.foo=1", "callback.foo has no effect: leave it out"),
        ("train", "+callback.foo.bar=1", "callback.foo has no effect: leave it out"),
        ("train", "+paths.foo=1", "paths.foo has no effect: leave it out"),
        ("train", "+metric.foo=1", "metric.foo has no effect: leave it out"),
        ("train", "+sampler.corrector.snr=1", "has no effect: there is no sampler.corrector"),
        ("train", "likelihood=flow likelihood.bound.terms=5", "has no effect: there is no likelihood.bound"),
        ("sample", "+sampler.foo=1", "sampler.foo has no effect: leave it out"),
        ("sample", "+trainer.max_steps=1", "trainer.max_steps has no effect: leave it out"),
        ("sample", "model=ddpm", "model cannot be chosen here"),
        ("train", "~seed", "seed cannot be left out"),
        ("train", "~trainer.timeout", "trainer needs a value for timeout"),
        ("train", "~data", "data cannot be left out; allowed: celeba"),
        ("train", "data=null", "data cannot be left out; allowed: celeba"),
        ("train", "callback=null", "callback cannot be left out"),
        ("sample", "sampler=null", "sampler cannot be left out"),
        ("train", "~model=ncsn", "model cannot be left out"),
        ("train", "model={a:1}", "set single keys"),
        ("train", "callback.samples=5", "callback.samples is a group of keys"),
        ("train", "trainer.max_steps={a:1}", "must be int"),
        ("train", "logger=[csv,wandb]", "is not an option of logger"),
        ("train", "seed=${foo}", "${foo} refers to a key that does not exist"),
        ("train", "seed=${seed}", "keys refer to each other in a circle"),
        ("train", "seed=${oc.env:NO_SUCH_VARIABLE_X}", "the environment variable NO_SUCH_VARIABLE_X is not set"),
        ("train", "seed=${nothing:1}", "is not a resolver"),
        ("train", "+model.levels=5", "model.levels exists: write model.levels=..., without +"),
        ("train", "model@x=ddpm", "model@x is neither a key nor a group"),
        ("train", "hydra.foo=1", "hydra.foo is neither a key nor a group"),
        ("train", "hydra.run.dir=${nope}", "${nope} refers to a key that does not exist"),
        ("train", "-m hydra/launcher=submitit_local", 'hydra/launcher=submitit_local is not installed: pip install -e ".[sweep]"'),
        ("train", "+hydra.foo=1", "hydra.foo has no effect: leave it out"),
        ("train", "hydra.mode=FOO", "FOO must be one of"),
        ("train", "hydra.job.num=abc", "abc must be"),
        ("train", "hydra.callbacks.sweep._target_=os.system", "is refused: only classes of hydra, hydra_plugins, diffusion_lab"),
        ("train", "+foo@bar=1", "foo is not a group"),
        ("train", "-m seed=interval(0,1)", "add hydra/sweeper=optuna"),
        ("train", "-m data=glob(x*)", "matches no option of data"),
        ("train", "callback.ema._target_=null", "callback.ema._target_=None names no class"),
        ("train", "+optimizer._args_=[1]", "optimizer._args_ is not a parameter"),
        ("train", "-m hydra/launcher=joblob", "did you mean joblib?"),
        ("train", "hydra/launcher=basic", "hydra/launcher=basic only applies to sweeps: add -m"),
        ("train", "hydra=null", "hydra cannot be left out"),
        ("sample", "~hydra", "hydra cannot be left out"),
        ("train", "hydra.job.config=3", "hydra.job.config=3: hydra.job.config: a mapping is needed"),
        ("train", "hydra.sweep.dir=null", "hydra.sweep.dir needs a value"),
        ("train", "hydra.job.chdir=abc", "hydra.job.chdir: abc must be bool"),
        ("train", "++data=digits", "data=digits is a group: write it without ++"),
        ("train", "seed=${data}", "data.seed: refers to a mapping that contains it"),
        ("train", "-m experiment=null,ddpm/l_simple", "experiment=null cannot be part of a sweep"),
        ("train", "recipe=null", "recipe cannot be left out"),
        ("train", "sde=null", "sde cannot be left out"),
        ("train", "metric=null", "metric cannot be left out"),
        ("train", "optimizer.betas=[0.9,abc]", "optimizer.betas=[0.9, 'abc'] must be tuple[float"),
        ("train", "optimizer.betas=[0.9]", "optimizer.betas=[0.9] must be tuple[float"),
        ("train", "trainer.min_steps=3", "trainer.min_steps is in no file of conf/: write +trainer.min_steps=..."),
        ("sample", "data_dir=x", "data_dir=x has no effect without evaluate=true"),
        ("train", "data.shape=[3,1048576,1048576]", "a batch takes 786,432 GiB, and this machine has"),
        ("train", "data=toy2d data.shape=2", "data.shape must be a list"),
        ("train", "data=toy2d trainer.accelerator=tpu", "trainer.accelerator='tpu' must be one of auto, cpu, gpu, cuda, mps"),
        ("sample", "compare=[ddim] compare_steps=[5,0]", "compare_steps=[5, 0] must be a list whose elements are at least 1"),
    ],
)  # fmt: skip
def test_one_line_of_ours(task, words, message):
    with pytest.raises(ConfigError) as error:
        check(task, [w for w in words.split() if w != "-m"] + ["ckpt_path=x"] * (task == "sample"), sweep="-m" in words)
    assert message in str(error.value) and "\n" not in str(error.value), error.value
    assert not any(word in str(error.value) for word in HYDRAS)


@pytest.mark.parametrize(
    "task, words",
    [
        ("train", "logger=null"),
        ("train", "likelihood=null"),
        ("train", "experiment=null debug=null"),
        ("train", "sampler/corrector=null"),
        ("train", "sampler=pc sampler/corrector=null"),
        ("train", "sampler=custom sampler/predictor=null sampler/corrector=langevin"),
        ("train", "callback.samples=null callback.evaluation=null"),
        ("train", "+data=digits"),
        ("train", "+callback.mine._target_=diffusion_lab.callback.Monitor"),
        ("train", "+trainer.min_steps=3"),
        ("sample", "likelihood=null"),
        ("sample", "sampler/corrector=null"),
        ("sample", "++data.root=x"),
    ],
)
def test_null_leaves_out_and_plus_adds_what_somebody_reads(task, words):
    check(task, [*words.split(), *(["ckpt_path=x"] if task == "sample" else [])])


def test_a_group_that_is_null_is_its_option_for_nothing():
    words = ["experiment=ddpm/l_simple", "seed=null", "~logger", "experiment=null", "sampler/corrector=null"]
    assert without_nulls(words) == ["seed=null", "logger=csv", "sampler/corrector=none"]


def test_a_key_of_ones_own_class_that_its_file_does_not_set_is_added_by_a_plus(tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network/own.yaml").write_text("_target_: mine.Net\n")
    with pytest.raises(
        ConfigError, match=r"network.width is in no file of conf/: write \+network.width=... to set the parameter"
    ):
        check("train", [f"hydra.searchpath=[file://{tmp_path}]", "network=own", "network.width=3"])


class Odd(Exception):
    """Of no kind that Hydra declares."""


def test_whatever_hydra_raises_names_the_override_at_fault(monkeypatch):
    from diffusion_lab.config import refusals

    def compose(task, words, return_hydra_config):
        if "seed=2" in words:
            raise Odd("no idea")

    monkeypatch.setattr(refusals, "compose", compose)
    with pytest.raises(ConfigError, match="^seed=2: no idea$"):
        refusals.composed_by_hydra("train", ["data=toy2d", "seed=2", "warmup_steps=1"])


def test_the_command_leaves_out_a_callback_and_its_loggers(tmp_path):
    words = ("data=toy2d", "debug=fast", "trainer.accelerator=cpu", "logger=null", "trainer.max_steps=2.0")
    left_out = ("callback.samples=null", "callback.evaluation=null", "callback.progress=null")
    done = run(ROOT / "train.py", *words, *left_out, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/metrics.csv").exists() and not (tmp_path / "run/samples.png").exists()
    assert not (tmp_path / "run/results.json").exists()
    for bad in (["+foo=1"], ["hydra.foo=1"], ["sampler=null"], ["hydra.verbose={a:1}"]):
        done = run(ROOT / "train.py", *words, *bad, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
