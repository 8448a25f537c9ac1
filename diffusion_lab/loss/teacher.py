"""A trained denoiser from which a student learns."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance.classifier import noise_of
from diffusion_lab.guidance.guided import same_noise


class FrozenDenoiser:
    """The teacher of a student: a denoiser in eval mode, without gradients, on the student's device.

    It is not a module, so that the weights and checkpoints of the student do not contain it.

    Args:
        model: the denoiser, its model, or a function that loads the model on first use.

    Raises:
        ValueError: for anything else.
    """

    def __init__(self, model: Any) -> None:
        if not (isinstance(getattr(model, "denoiser", model), Denoiser) or callable(model)):
            raise ValueError(
                f"teacher={model!r} must be a denoiser or a model, such as diffusion_lab.load(...) returns"
            )
        self._load: Callable[[], Any] | None = None
        self._denoiser: Denoiser | None = None
        self.shape: tuple[int, ...] | None = None
        if isinstance(getattr(model, "denoiser", model), Denoiser):
            self._keep(copy.deepcopy(model))
        else:
            self._load = model

    @classmethod
    def of(cls, teacher: Any) -> FrozenDenoiser:
        """A teacher as it is, or that of anything the constructor takes."""
        return teacher if isinstance(teacher, FrozenDenoiser) else cls(teacher)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenDenoiser:
        return self  # the rehearsal copies a model with its loss, and nothing changes a teacher

    def _keep(self, model: Any) -> None:
        shape = getattr(model, "shape", None)
        self.shape = None if shape is None else tuple(shape)
        self._denoiser = getattr(model, "denoiser", model).eval().requires_grad_(False)

    @property
    def denoiser(self) -> Denoiser:
        """The teacher, which is loaded on first use."""
        if self._denoiser is None:
            self._keep(self._load())
        return self._denoiser

    def __call__(self, student: Denoiser) -> Denoiser:
        """The teacher on the student's device, bound to the student's condition."""
        teacher = self.denoiser
        ours, theirs = (next(one.parameters(), None) for one in (student, teacher))
        if ours is not None and theirs is not None and ours.device != theirs.device:
            teacher.to(ours.device)
        return teacher.given(**student.condition) if student.condition else teacher

    def check(self, student: Denoiser, shape: Sequence[int] | None = None) -> None:
        """Refuse a student of other data; `shape` is that of one of its data points.

        Raises:
            ValueError: naming what differs.
        """
        teacher = self.denoiser
        ranges = [(one.parameterization.low, one.parameterization.high) for one in (student, teacher)]
        for what, same in (
            (f"noise process, {noise_of(teacher)} instead of {noise_of(student)}", same_noise(student, teacher)),
            ("data shape", None in (shape, self.shape) or tuple(shape) == self.shape),
            ("image range", ranges[0] == ranges[1] or not student.parameterization.bounded),
            ("classes", teacher.classes == student.classes),
            ("label dropout", student.null is None or teacher.null is not None),
        ):
            if not same:
                raise ValueError(
                    f"a teacher and its student need the same data and noise, but the teacher differs in its {what}: "
                    "choose another loss.teacher.ckpt_path, or give the student the settings of that run"
                )

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the teacher's weights, by which a resumed run knows them."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self.denoiser.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def check_digest(self, recorded: str | None) -> None:
        """Raise ValueError unless a checkpoint was trained with these weights; None: it does not say."""
        if recorded not in (None, self.digest):
            raise ValueError(
                "the weights of loss.teacher.ckpt_path are not those that this run was trained with: name that "
                "checkpoint, a .ckpt file, or start a new run"
            )
