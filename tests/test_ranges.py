"""Ranges, options and rules are declared at a class, and checked in Python and in configurations by one declaration."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MinLen, MultipleOf

from diffusion_lab import ranges
from diffusion_lab.config import declared, schema
from diffusion_lab.config.command_line import tidy, with_absolute_directories
from diffusion_lab.config.compose import check
from diffusion_lab.config.instantiate import FURTHER, resolve
from diffusion_lab.errors import ConfigError
from diffusion_lab.ranges import Count, Finite, Fraction, Levels, Positive, Seed, Time, checked, mismatch
from diffusion_lab.sampler import Step

ROOT = Path(__file__).resolve().parents[1]


def targets(node: Any) -> set[str]:
    """Every class that a configuration file names."""
    if isinstance(node, list):
        return {name for one in node for name in targets(one)}
    if not isinstance(node, dict):
        return set()
    own = {str(node["_target_"])} - {"???"} if "_target_" in node else set()
    return own | {name for one in node.values() for name in targets(one)}


TARGETS = sorted({t for path in (ROOT / "conf").rglob("*.yaml") for t in targets(yaml.safe_load(path.read_text()))})
DECLARED = [f"{declared.__name__}.{name}" for name in ("Train", "Sample", "Trainer", "Optimizer", "Metric", "Paths")]
WITHOUT_RANGE = {
    "devices": "checked by trainer_keys",
    "label": "a class of the checkpoint, which is known only when it is loaded",
    "background": "a grey level or three",
}
"""Numbers of ours whose range a single declaration cannot state."""


def has_range(hint: Any) -> bool:
    """Whether no number without a range is accepted."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated or origin is Literal:
        return True
    return hint not in (int, float) and all(has_range(one) for one in arguments if one is not Ellipsis)


@pytest.mark.parametrize("target", [t for t in TARGETS if t.startswith("diffusion_lab.")] + DECLARED)
def test_every_number_that_can_be_configured_has_a_range(target):
    found = {key: one.hint for key, one in schema.parameters(target).items()}
    assert [key for key, hint in found.items() if not has_range(hint) and key not in WITHOUT_RANGE] == []


VALUES = (None, True, -1, 0, 0.5, 1, 1.5, 2, 7, 1e9, 2**64, math.inf, math.nan, "x", [], [0], [1, -1], {})


@pytest.mark.parametrize("target", [t for t in TARGETS if t.startswith("diffusion_lab.")])
def test_source_and_class_declare_the_same(target):
    """What the validator reads without importing a class is what Python sees."""
    found, cls = schema.parameters(target), resolve(target)
    hints = ranges._hints(cls) if hasattr(cls, "__dataclass_fields__") else {}
    for base in reversed(cls.__mro__) if not hints else ():
        if "__init__" in vars(base) and base.__module__.startswith("diffusion_lab"):
            hints |= get_type_hints(vars(base)["__init__"], include_extras=True)
    for key, parameter in found.items():
        for value in VALUES:
            assert mismatch(parameter.hint, value) == mismatch(hints[key], value), (key, value)


@pytest.mark.parametrize(
    "hint, value, message",
    [
        (Count, 0, "must be at least 1"),
        (Count | None, "a", "must be int | None"),
        (Count, True, "must be int"),
        (Annotated[float, Gt(0)], 0, "must be greater than 0"),
        (Annotated[float, Lt(2)], 2, "must be less than 2"),
        (Annotated[float, Le(2)], 3, "must be at most 2"),
        (Time, 1.5, "must be in (0, 1]"),
        (Positive, math.nan, "must be in (0, inf)"),
        (Finite, -math.inf, "must be finite"),
        (Seed, 2**64, "must be in [0, 9223372036854775807]"),
        (Annotated[int, Ge(4), MultipleOf(2)], 5, "must be at least 4 and a multiple of 2"),
        (Annotated[Sequence[int], MinLen(1)], [], "must be of length 1 or more"),
        (Annotated[Sequence[int], Len(2, 3)], [1] * 4, "must be of length 2 or more and of length 3 or less"),
        (Sequence[Count] | Count, [5, 0], "must be a list whose elements are at least 1"),
        (tuple[Fraction, Fraction], [0.5], "must be tuple[float, float]"),
        (Count | Literal["auto"], "all", "must be one of auto"),
        (Count | Literal["auto"], -1, "must be at least 1"),
        (Literal[1, 2], True, "must be 1 | 2"),
        (Any | Literal["x"] if sys.version_info >= (3, 11) else Literal["x"], "y", "must be one of x"),
    ],
)
def test_a_value_that_does_not_fit_is_told_what_does(hint, value, message):
    assert mismatch(hint, value) == message


@pytest.mark.parametrize(
    "hint, value",
    [(Count | None, None), (Count, 1), (Levels | None, 2), (Positive, 1), (Time, 1), (Step | None, object()),
     (Sequence[Count], (1, 2)), (tuple[Count, ...], []), (Annotated[float, Interval(ge=0, le=1)], 0)],
)  # fmt: skip
def test_what_fits_is_accepted(hint, value):
    assert mismatch(hint, value) is None


class Net:
    ORDERED: ClassVar = (("low", "high"),)

    @checked
    def __init__(self, width: Count, low: float = 0.0, high: float = 1.0, kind: Literal["a", "b"] = "a") -> None:
        self.width = width


class Wide(Net):
    pass


@dataclass(frozen=True)
class Mine(Step):
    strength: Positive = 1.0

    def __call__(self, p, x, t, s, denoise, noise, past):
        return x


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Net(0), "Net: width=0 must be at least 1"),
        (lambda: Wide(width=-1), "Wide: width=-1 must be at least 1"),
        (lambda: Net(1, kind="c"), "Net: kind='c' must be one of a, b"),
        (lambda: Net(1, 2.0), "Net: low=2.0 must be less than high=1.0"),
        (lambda: Mine(0.0), r"Mine: strength=0.0 must be in (0, inf)"),
    ],
)
def test_a_class_of_a_user_is_checked_in_python(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'width'"):
        Net()


USER = """
raise ImportError("the validator must not import this")
import annotated_types as at
from typing import Annotated, ClassVar, Literal
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import ScoreMatching
from .sizes import Size

LARGEST = 2**4

class Net:
    ORDERED: ClassVar = (("low", "high"),)
    REFUSES: ClassVar = {"compile": "cannot be compiled: set compile=false"}

    def __init__(self, width: Size = 4, dimensions: int = 2, depth: "Annotated[int, at.Interval(ge=1, le=LARGEST)]" = 1,
                 kind: Literal["a", "b"] = "a", sizes: tuple[Size, ...] = (1,), low: float = 0.0, high: float = 1.0,
                 unreadable: Annotated[int, at.Ge(len("ab"))] = 3): ...

class Single(ScoreMatching):
    pass

class Potential(Net):
    def energy(self, x, t): ...

def build(**sizes): ...
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's directory with options, and a package that cannot be imported."""
    for folder in ("conf/network", "conf/model", "ranged_nets"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ranged_nets/__init__.py").write_text(USER)
    (tmp_path / "ranged_nets/sizes.py").write_text(
        "from typing import Annotated\nfrom annotated_types import Ge\nSize = Annotated[int, Ge(1)]\n"
    )
    values = "width: 4\ndimensions: 2\ndepth: 1\nkind: a\nsizes: [1]\nlow: 0.0\nhigh: 1.0\n"
    for name, target in (("ranged", "Net"), ("potential", "Potential"), ("built", "build")):
        (tmp_path / f"conf/network/{name}.yaml").write_text(f"_target_: ranged_nets.{target}\n{values}")
    ours = (ROOT / "conf/model/score.yaml").read_text()
    (tmp_path / "conf/model/single.yaml").write_text(
        ours.replace("diffusion_lab.model.ScoreMatching", "ranged_nets.Single")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FURTHER, "ranged_nets")
    source = importlib.import_module("diffusion_lab.config.source")
    for cached in (schema.parameters, schema.constants, schema.has_method, source._root):
        cached.cache_clear()


@pytest.mark.parametrize(
    "words, message",
    [
        ("network.width=0", "network.width=0 must be at least 1"),
        ("network.depth=17", "network.depth=17 must be in [1, 16]"),
        ("network.kind=c", "network.kind='c' must be one of a, b"),
        ("network.sizes=[1,0]", "network.sizes=[1, 0] must be a list whose elements are at least 1"),
        ("network.low=1.5", "network.low=1.5 must be less than network.high=1.0"),
        ("compile=true", "Net cannot be compiled: set compile=false"),
        ("model=single likelihood=flow", "FlowLikelihood needs several noise levels"),
        ("model=single sampler=ode", "ProbabilityFlow makes steps between noise levels"),
        ("model=single sampler=ddim", "DDIM makes steps between noise levels"),
        ("model=single loss.vlb_weight=1", "Single has only one noise level and no variational bound"),
        ("+network.unreadable=1", None),
        ("model=single loss=contrastive", "ContrastiveLoss needs a network with an energy: use network=energy"),
        ("model=single loss=contrastive network=potential", None),
        ("model=single loss=contrastive network=built", None),
    ],
)
def test_a_class_of_a_user_is_checked_before_it_is_imported(project, words, message):
    command = with_absolute_directories(
        tidy(["--config-dir=conf", "data=toy2d", *(["network=ranged"] * ("network=" not in words)), *words.split()])
    )
    if message is None:
        return check("train", command)
    with pytest.raises(ConfigError) as error:
        check("train", command)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, message",
    [
        (
            "model=score_sde likelihood=bound",
            "VariationalBound needs a model with discrete levels: choose likelihood=flow",
        ),
        ("sampler=custom", "sampler has neither predictor nor corrector: choose sampler/predictor=..."),
        ("trainer=fsdp trainer.precision=16-mixed", "Sharded does not support trainer.precision=16-mixed"),
        (
            "trainer=fsdp network=energy data=toy2d",
            "Energy needs second derivatives, which trainer=fsdp does not support",
        ),
        ("guidance=classifier_free", "ClassifierFree needs a model with dropped labels"),
        ("guidance=classifier_free data.conditional=true label_dropout=0", "ClassifierFree needs a model with dropped"),
        (
            "model=score likelihood=flow",
            "FlowLikelihood needs several noise levels, and this model has only one: choose likelihood=none",
        ),
        ("sde=vp", "sde=... chooses the process of model=score_sde"),
        ("optimizer.eps=0", "optimizer.eps=0 must be in (0, inf)"),
        ("optimizer.betas=[0.9,1]", "optimizer.betas=[0.9, 1.0] must be a list whose elements are in [0, 1)"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 must be at least 1"),
        ("data.eval_batch_size=0", "data.eval_batch_size=0 must be at least 1"),
    ],
)
def test_rules_of_our_classes_hold_for_configurations(words, message):
    with pytest.raises(ConfigError) as error:
        check("train", words.split())
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_settings_of_the_trained_guidance_have_its_ranges():
    with pytest.raises(ConfigError, match=r"guidance.scale=-1 must be in \[0, inf\)"):
        check("sample", ["ckpt_path=x", "guidance.scale=-1"])
