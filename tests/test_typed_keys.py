"""Every key has a type: what can be converted without loss is, and what cannot is refused by the key that was typed."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from diffusion_lab.config import schema
from diffusion_lab.config.compose import CONF, check, plain
from diffusion_lab.config.typed import convert, typed_key
from diffusion_lab.errors import ConfigError


def values(task, *words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(task, list(words))
    convert(config)
    return plain(config)


def at(config, path):
    for key in path.split("."):
        config = config[key]
    return config


@pytest.mark.parametrize(
    "task, word, path, value",
    [
        ("train", "trainer.max_steps=1e5", "model.decay_steps", 100000),
        ("train", "trainer.max_steps=1e5", "trainer.max_steps", 100000),
        ("train", "trainer.devices=2.0", "trainer.devices", 2),
        ("train", "trainer.devices=[0.0,1]", "trainer.devices", [0, 1]),
        ("train", "trainer.log_every_n_steps=1e1", "trainer.log_every_n_steps", 10),
        ("train", "data.batch_size=64.0", "data.batch_size", 64),
        ("train", "data.shape=[1.0,8,8e0]", "model.shape", [1, 8, 8]),
        ("train", "network.multipliers=[1e0,2.0]", "model.network.multipliers", [1, 2]),
        ("train", "metric.samples=1e3", "callback.evaluation.evaluator.samples", 1000),
        ("train", "seed=1e3", "callback.rank_seed.seed", 1000),
        ("train", "logger.wandb.tags=[1,a,2.5]", "logger.wandb.tags", ["1", "a", "2.5"]),
        ("train", "logger.wandb.name=7", "logger.wandb.name", "7"),
        ("train", "paths.log_dir=3", "paths.log_dir", "3"),
        ("train", "optimizer.lr=1", "optimizer.lr", 1),
        ("train", "optimizer.betas=[0,0.9]", "optimizer.betas", [0.0, 0.9]),
        ("train", "trainer.limit_val_batches=1.0", "trainer.limit_val_batches", 1.0),
        ("sample", "num_samples=1e3", "num_samples", 1000),
        ("sample", "sampler.steps=1e1", "sampler.steps", 10),
        ("sample", "metric.samples=1e2", "metric.samples", 100),
        ("sample", "compare_steps=[1e1,20]", "compare_steps", [10, 20]),
        ("sample", "out=5", "out", "5"),
        ("sample", "grid=16.0", "grid", 16),
    ],
)
def test_what_loses_nothing_is_converted(task, word, path, value):
    found = at(values(task, word, *(["ckpt_path=last"] if task == "sample" else [])), path)
    assert found == value and type(found) is type(value)
    assert [type(v) for v in found] == [type(v) for v in value] if isinstance(value, list) else True


@pytest.mark.parametrize(
    "task, word, message",
    [
        ("train", "trainer.max_steps=10.5", "trainer.max_steps=10.5 must be int"),
        ("train", "trainer.max_steps=-5", "trainer.max_steps=-5 must be at least 1"),
        ("train", "data.shape=[1.5,8,8]", "data.shape="),
        ("train", "network.multipliers=[a]", "network.multipliers=['a'] must be"),
        ("train", "seed=1.5", "seed=1.5 must be int"),
        ("train", "compile=1", "compile=1 must be bool"),
        ("train", "warmup_steps=1e-3", "warmup_steps=0.001 must be int"),
        ("train", "trainer.timeout=abc", "trainer.timeout='abc' must be float"),
        ("train", "trainer.devices=null", "trainer.devices=None must be"),
        ("train", "+trainer.foo=1", "trainer.foo is not a parameter of pytorch_lightning.Trainer"),
        ("train", "+optimizer.foo=1", "optimizer.foo is not a parameter of torch.optim.Adam"),
        ("train", "optimizer.fused=3", "optimizer.fused=3 must be bool | None"),
        ("sample", "num_samples=10.5", "num_samples=10.5 must be int"),
        ("sample", "evaluate=1", "evaluate=1 must be bool"),
        ("sample", "sampler.spacing=nope", "sampler.spacing='nope' must be one of uniform"),
        ("sample", "compare_steps=[a]", "compare_steps=['a'] must be"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_key_that_was_typed(task, word, message):
    with pytest.raises(ConfigError) as error:
        check(task, [word, *(["ckpt_path=last"] if task == "sample" else [])])
    assert str(error.value).startswith(message), error.value
    assert "\n" not in str(error.value)


def test_a_reference_is_followed_to_the_key_it_means():
    raw = {"a": {"b": "${c}", "n": "${d}"}, "c": "${e.f}", "d": {"x": "${c}"}, "e": {"f": 1}, "g": "${c} and more"}
    assert typed_key(raw, "a.b") == "e.f" and typed_key(raw, "a.n.x") == "e.f"
    assert typed_key(raw, "g") == "g" and typed_key(raw, "nowhere.at.all") == "nowhere.at.all"
    assert typed_key({"a": "${b[0]}", "b": [1]}, "a") == "a" and typed_key({"a": "${b[0]}"}, "a", whole=False) == "b"


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("from .part import Net as Net, Open, Child")
    (tmp_path / "own_package" / "part.py").write_text(
        "from typing import Optional, Union\nimport nowhere\n"
        "class Net:\n    def __init__(self, width: int, names: Optional[list[str]] = None, a: Union[int, str] = 1): ...\n"
        "class Open:\n    def __init__(self, width: int, **more): ...\n"
        "class Child(Net): ...\nclass Lost(nowhere.Base): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_classes_of_other_packages_are_read_without_importing_them(own):
    net = schema.parameters("own_package.Net")
    assert net == schema.parameters("own_package.Child") and list(net) == ["width", "names", "a"]
    assert [one.hint for one in net.values()] == [int, list[str] | None, int | str]
    assert schema.parameters("own_package.Open") is None and schema.parameters("own_package.part.Lost") is None
    assert schema.parameters("own_package.Nothing") is None and schema.parameters("no_package.Nothing") is None
    assert schema.parameters("torch.nn.Flatten") is None  # by `import *`
