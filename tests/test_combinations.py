"""Any model with any sampler: only explicit settings are refused, and printed advice works."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
import zygote

from diffusion_lab.config.compose import CONF, check, composed, options, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.config.validation import validate
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.sampler.scalar_process import ScalarProcess

SAMPLED = [m for m in options("model") if m not in ("score_sde", "classifier")]
SDES = [sde for sde in options("sde") if sde not in ("edm", "flow")]  # as model=edm and model=flow
MODELS = [*(name for name in SAMPLED if name != "consistency"), *(f"score_sde sde={sde}" for sde in SDES)]
SAMPLERS = [name for name in options("sampler") if name not in ("trained", "custom")]


def settings(*words: str) -> dict:
    """The plain configuration of a training command, with the same refusals."""
    config = composed("train", words)
    config.paths.run_dir = "."
    found = plain(config, words)
    validate(found)
    return found


@cache
def denoiser(model: str, data: str) -> Denoiser:
    """The denoiser of a model, with a network that returns its input."""
    found = settings(f"data={data}", *f"model={model}".split())["model"] | {"network": {}, "loss": {}, "optimizer": {}}
    kept = {k: v for k, v in found.items() if k not in ("sampler", "likelihood")}
    built = instantiate(kept | {"_partial_": True}, "model")(sampler=None)
    built.denoiser.network = lambda x, c_noise: x
    return built.denoiser


SUBJECTS = [*((m, "digits") for m in MODELS), *((m, "toy2d") for m in ("ncsn", "score"))]
PAIRS = [(*one, name) for i, one in enumerate(SUBJECTS) for j, name in enumerate(SAMPLERS) if (i + j) % 2 == 0]
"""Every sampler with half of the models, and every model with half of the samplers."""


@pytest.mark.parametrize("model, data, name", PAIRS)
def test_samplers_work_with_models_or_refuse_an_explicit_setting(model, data, name):
    words = [f"data={data}", *f"model={model}".split(), f"sampler={name}"]
    langevin = name in ("langevin", "annealed_langevin", "annealed_langevin_v2")
    if model == "score" and not langevin:
        with pytest.raises(ConfigError, match="use sampler=langevin"):
            settings(*words)
        return
    sampler = instantiate(settings(*words)["model"]["sampler"], "sampler")
    times = sampler.check(denoiser(model, data))
    assert times[0] <= 1 and len(times) >= 1
    if name == "langevin":
        assert times.tolist() == [denoiser(model, data).process.t_min]


@pytest.mark.parametrize("words", [
    ["model=ncsn", "sampler=pc"], ["model=ncsnv2", "sampler=custom", "sampler/corrector=langevin"],
    ["experiment=score_sde/ncsnpp", "sampler=annealed_langevin"],
])  # fmt: skip
def test_recipe_settings_apply_only_to_their_sampler(words):
    """Ten Langevin steps of NCSN are not those of another corrector."""
    corrector = settings(*words)["sampler"]["corrector"]
    assert corrector["steps"] == {"Langevin": 1}.get(corrector["_target_"].split(".")[-1], 100)


def test_recipes_of_annealed_langevin_keep_their_step_sizes():
    for words, size, steps in (
        (["model=ncsn"], 3.2e-4, 10), (["model=ncsn", "data=toy2d"], 4e-5, 50), (["model=ncsnv2"], 1.508e-5, 5),
        (["model=ncsnv2", "data=toy2d"], 4e-5, 10), (["model=ncsnv2", "data=celeba"], 3.3e-6, 5),
        (["model=ncsn", "sampler=annealed_langevin_v2"], 3.2e-4, 10), (["model=ncsn", "data=cifar10"], 2e-5, 100),
    ):  # fmt: skip
        corrector = settings(*words)["sampler"]["corrector"]
        assert (corrector["step_size"], corrector["snr"], corrector["steps"]) == (size, None, steps), words
    assert settings("model=ncsn")["sampler"]["denoise"] is True


def test_an_explicit_step_size_replaces_the_other():
    for sampler in ("annealed_langevin", "annealed_langevin_v2", "langevin"):
        for key, other, value in (("snr", "step_size", 0.3), ("step_size", "snr", 1e-3)):
            words = ["model=ncsn", f"sampler={sampler}", f"sampler.corrector.{key}={value}"]
            corrector = settings(*words)["sampler"]["corrector"]
            assert corrector[key] == value and corrector[other] is None
            instantiate(corrector, "corrector")


def test_plain_langevin_steps_are_a_tenth_of_the_variance_at_any_noise():
    for model in MODELS:
        sampler = instantiate(
            settings("data=toy2d", *f"model={model}".split(), "sampler=langevin")["sampler"], "sampler"
        )
        process, times = denoiser(model, "toy2d").process, sampler.check(denoiser(model, "toy2d"))
        size = sampler.corrector.size(ScalarProcess(process, times), times.item())
        assert size == pytest.approx(0.1 * process.sigma(times).item() ** 2, rel=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_experiments_settings_do_not_stop_another_sampler(name):
    for experiment in ("ddim/eta02", "score_sde/table1/vp_probability_flow_pc1000"):
        check("train", [f"experiment={experiment}", f"sampler={name}"])


@pytest.mark.parametrize("words", [
    ["model=ncsn", "sampler=ddim", "sampler.steps=50"], ["model=ncsn", "sampler_steps=50", "sampler=ancestral"],
    ["experiment=ddim/eta0", "sampler=ancestral", "sampler.predictor.eta=0.5"],
    ["model=ncsn", "sampler=pc", "+sampler.corrector.step_size=1e-3"], ["sampler=ode", "sampler/predictor=ddim"],
    ["model=ncsn", "sampler.corrector.snr=0.2", "sampler.corrector.step_size=1e-3"],
])  # fmt: skip
def test_unsuitable_explicit_settings_are_refused(words):
    with pytest.raises(ConfigError, match="more than the model's|is not a parameter|is not a key|either step_size"):
        check("train", words)
        instantiate(settings(*words)["sampler"], "sampler")


@pytest.mark.parametrize("words, steps", [
    (["model=ncsn"], 20), (["model.levels=30"], 30), (["model=ncsn", "model.levels=7", "sampler.spacing=quadratic"], 7),
    (["model=ncsnv2", "data=cifar10"], 50), (["model=score_sde"], 50),
])  # fmt: skip
def test_default_steps_are_at_most_the_levels(words, steps):
    assert settings(*words, "sampler=ddim")["sampler"]["steps"] == steps
    assert settings("model.levels=30")["sampler"]["steps"] == 30  # of the recipe's sampler_steps, 100
    few = ["model=ncsn", "model.levels=7", "sampler=dpm_solver"]
    assert settings(*few)["sampler"]["steps"] == 20  # between the levels too
    assert settings(*few, "sampler.spacing=uniform")["sampler"]["steps"] == 7


def test_the_command_that_training_prints_samples(tmp_path):
    fast = ["debug=fast", "trainer.accelerator=cpu", "logger=csv"]
    done = zygote.run("/".join([str(CONF.parent), "train.py"]), "model=ncsn", "data=toy2d", *fast, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = re.search(r"sample from it:  \S*python\S* \S*sample.py (.*)", done.stdout)[1].split()
    assert len(printed) == 1  # where alpha = 1, the model's own sampler
    done = zygote.run(
        str(CONF.parent / "sample.py"),
        *printed,
        "sampler=ddim",
        "num_samples=4",
        "trainer.accelerator=cpu",
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "10 network evaluations" in done.stdout, done.stdout + done.stderr
    words = [*printed, "sampler.steps=11", "num_samples=4", "trainer.accelerator=cpu"]
    done = zygote.run(str(CONF.parent / "sample.py"), *words, cwd=tmp_path)
    assert done.returncode == 2 and "between 1 and the model's 10 levels, got 11" in done.stderr


ADVISED = [
    "model=score data=toy2d likelihood=bound", "model=score data=toy2d likelihood=both",
    "model=score data=toy2d likelihood=flow", "model=score data=toy2d loss=simple loss.vlb_weight=1",
    "model=score data=toy2d sampler=ode", "model=score data=toy2d sampler=pc", "model=score_sde likelihood=bound",
    "model=score_sde sde=ve likelihood=both", "sde=vp", "data=toy2d network=unet_small", "network=mlp",
    "model=score data=toy2d loss=sliced compile=true", "trainer.strategy=fsdp", "sampler=trained",
    "model=ncsn sampler=ddim sampler.steps=50", "sampler=custom", "data.batch_size=100 trainer.devices=8",
]  # fmt: skip


@pytest.mark.parametrize("command", ADVISED)
def test_advice_works(command):
    """Repeat a refused command with the advice, as long as there is new advice."""
    words = command.split()
    for _ in range(3):
        with pytest.raises(ConfigError) as error:
            check("train", words)
        said = str(error.value)
        advice = re.findall(r"[a-z_/]+(?:\.[a-z_]+)*=[\w-]+", said.rpartition(": ")[2])
        advice = dict(word.split("=") for word in reversed(advice))
        if "use at most" in said:
            advice = {"sampler.steps": said.split()[-1]}
        if "a multiple of" in said:
            advice = {"data.batch_size": str(5 * int(said.split()[-1]))}
        if "choose ancestral" in said or "sampler/predictor=..." in said:
            advice = {"sampler": "ancestral"}
        assert advice, said
        words = [w for w in words if not {w.split("=")[0], w.split(".")[0]} & {*advice}] + [
            f"{k}={v}" for k, v in advice.items()
        ]
        try:
            check("train", words)
        except ConfigError:
            continue
        return
    raise AssertionError(f"{command}: the advice leads nowhere, {words}")


def advice_in_messages() -> list[str]:
    """Every `key=value` with a literal value that a message advises to use, choose, set or add."""
    found = []
    for path in CONF.parent.glob("diffusion_lab/**/*.py"):
        if "bench" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for words in re.findall(
                    r"\b(?:use|choose|set|add|try|or) ((?:[a-z_/]+(?:\.[a-z_]+)*=[a-z0-9_-]+(?: |, |$)?)+)", node.value
                ):
                    found += re.findall(r"[a-z_/.]+=[a-z0-9_-]+", words)
    # of the commands referee and export, and of a plug-in that is an extra
    return sorted(set(found) - {"device=cpu", "format=safetensors", "hydra/sweeper=optuna"})


@pytest.mark.parametrize("word", advice_in_messages())
def test_every_key_and_value_that_a_message_advises_exists(word):
    key = word.partition("=")[0]
    context = {"callback.score_error": [], "data.name": ["data=toy2d"], "metric.features": ["metric=digits"]}
    context |= {"data.on_corrupt": ["data=image_folder", "data.root=."], "data.download": ["data=cifar10"]}
    context |= {"callback.accuracy": ["model=classifier"], "control/operator": ["control=dps"]}
    context |= {"sampler.predictor.predicts": ["sampler=dpm_solver"]}
    context |= {"network.conditional": ["network=ddpmpp"], "sampler.corrector.norm": ["sampler=pc"]}
    context |= {"loss.spacing": ["loss=progressive", "loss.teacher.ckpt_path=."]}
    context |= {"metric.features.download": ["metric=inception"], "data.flip": ["data=cifar10"]}
    refusals = []
    for task, more in (("train", []), ("sample", ["ckpt_path=last"])):
        try:
            check(task, [*more, *context.get(key, []), word], only_names=True)
        except ConfigError as error:
            refusals.append(str(error))
    assert len(refusals) < 2, refusals


def test_the_advice_is_found():
    assert {"likelihood=none", "sampler=langevin", "loss.vlb_weight=0", "trainer=fsdp"} <= set(advice_in_messages())
