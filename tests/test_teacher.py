"""Teachers: the frozen denoiser of another run, from which a student learns."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from test_checkpoint import MODEL

from diffusion_lab.checkpoint import Teacher
from diffusion_lab.config.compose import check
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.loss import FrozenDenoiser
from diffusion_lab.network import MLP
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VP, Cosine, DiscreteProcess, Linear
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO


def denoiser_of(process=None, classes=None, null=None, **row):
    denoiser = Denoiser(MLP(2), process or VP(Linear()), Parameterization(**row))
    denoiser.classes, denoiser.null = classes, null
    return denoiser


@pytest.fixture
def saved(tmp_path):
    """A checkpoint whose EMA weights are all 0.5."""
    model = instantiate(MODEL, "model")
    weights = {name: torch.full_like(p, 0.5) for name, p in model.network.named_parameters()}
    contents = {
        "state_dict": model.state_dict(),
        "global_step": 7,
        "config": {"model": MODEL},
        "ema": {"weights": weights},
    }
    path = tmp_path / "checkpoints" / "step_00000007.ckpt"
    AtomicCheckpointIO().save_checkpoint(contents, path)
    return tmp_path, model


def test_it_is_the_frozen_model_of_the_checkpoint_loaded_on_first_use(saved, monkeypatch):
    folder, model = saved
    loads = []
    monkeypatch.setattr(
        "diffusion_lab.checkpoint.load", functools.partial(_counted, loads, Teacher.__init__.__globals__["load"])
    )
    ema, raw = Teacher(str(folder)), Teacher(str(folder), weights="raw")
    assert not loads
    x, t = torch.randn(3, 2), torch.full((3,), 0.5)
    got = raw(model.denoiser)(x, t).eps
    torch.testing.assert_close(got, model.eval().denoiser(x, t).eps)
    assert not got.requires_grad and not raw.denoiser.training
    assert all((p == 0.5).all() for p in ema(model.denoiser).network.parameters())
    assert raw(model.denoiser) is raw(model.denoiser) and len(loads) == 2, "it is loaded once"
    assert ema.shape == (2,) and ema.digest != raw.digest == FrozenDenoiser(model).digest


def _counted(loads, load, *args, **kwargs):
    loads.append(args)
    return load(*args, **kwargs)


def test_a_student_does_not_hold_its_teacher():
    model = instantiate(MODEL, "model")
    teacher = FrozenDenoiser(model)
    student = torch.nn.Module()
    student.teacher = teacher
    assert not student.state_dict() and not list(student.parameters())
    assert copy.deepcopy(student).teacher is teacher
    teacher.denoiser.network.requires_grad_(False)
    assert all(p.requires_grad for p in model.network.parameters()), "a copy is frozen, not the model itself"


def test_it_has_the_condition_of_the_student():
    student = denoiser_of(classes=3).given(label=torch.tensor([2, 0]))
    assert FrozenDenoiser(denoiser_of(classes=3))(student).condition["label"].tolist() == [2, 0]


@pytest.mark.parametrize(
    "student, what",
    [
        (denoiser_of(VP(Cosine())), "noise process"),
        (denoiser_of(DiscreteProcess(Linear(), 1000)), "noise process"),
        (denoiser_of(low=0.0), "image range"),
        (denoiser_of(classes=4, null=4), "classes"),
        (denoiser_of(classes=3, null=3), "label dropout"),
    ],
)
def test_a_student_of_other_data_or_noise_is_refused(student, what):
    teacher = denoiser_of(classes=3 if student.classes else None)
    with pytest.raises(
        ValueError, match=rf"the teacher differs in its {what}.*: choose another loss.teacher.ckpt_path"
    ):
        FrozenDenoiser(teacher).check(student)


def test_another_data_shape_and_another_parameterization():
    teacher = FrozenDenoiser(instantiate(MODEL, "model"))
    with pytest.raises(ValueError, match="data shape"):
        teacher.check(teacher.denoiser, (3,))
    FrozenDenoiser(denoiser_of(output="v")).check(denoiser_of(output="eps"), (2,))


@pytest.mark.parametrize("wrong", ["run", None, 3])
def test_what_is_no_teacher_is_refused(wrong):
    with pytest.raises(ValueError, match="must be a denoiser or a model, such as diffusion_lab.load"):
        FrozenDenoiser(wrong)


def test_a_missing_checkpoint_of_a_component_is_refused_before_anything_is_imported():
    words = ["ckpt_path=last", "guidance=autoguidance", "guidance.ckpt_path=nowhere"]
    with pytest.raises(ConfigError, match="guidance.ckpt_path=nowhere does not exist: give a run directory"):
        check("sample", words)


def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="x.ckpt is refused, it is not a file of plain tensors"):
        Teacher(str(tmp_path / "x.ckpt")).denoiser  # noqa: B018
    with pytest.raises(ValueError, match="ckpt_path=last is the student itself when its run resumes"):
        Teacher("last")
    with pytest.raises(ConfigError, match=r"^loss.teacher.ckpt_path=.*nowhere does not exist"):
        Teacher(str(tmp_path / "nowhere")).denoiser  # noqa: B018
