"""FlashDiffusion: distillation into a few steps, with distribution matching and an adversarial loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from annotated_types import MinLen
from torch import Tensor, nn
from torch.func import functional_call

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss.distance import Distance
from diffusion_lab.loss.teacher import FrozenDenoiser
from diffusion_lab.noise import Generators, draw, draw_each
from diffusion_lab.process import broadcast
from diffusion_lab.ranges import Count, NonNegative, Time, checked

MODES = ((0.0, 0.0, 0.5, 0.5), (0.1, 0.3, 0.3, 0.3), (0.25, 0.25, 0.25, 0.25), (0.4, 0.2, 0.2, 0.2))
"""Weights of the modes of the law of starting times in each stage, from pure noise to little; as published."""


class Solver(Protocol):
    """What the teacher is sampled with, such as a `sampler.Sampler`."""

    dtype: torch.dtype

    def timesteps(self, denoiser: Denoiser) -> Tensor: ...

    def record(self, denoiser: Denoiser, like: Tensor, shown: bool = False, times: Tensor | None = None) -> Any: ...


class FlashLoss(nn.Module):
    """Distillation of a teacher's many steps into one; Chadebec et al. 2024 (arXiv:2406.02347), Section 3.

    x_t is data noised to a time t of the teacher's K timesteps (pure noise at the first of them), x_teacher the end of
    the teacher's steps from x_t, and x_student = f(x_t, t) the student's estimate of x_0.  Per image

        d(x_student, x_teacher) + matching_weight L_DMD + adversarial_weight (D(x_student) - 1)^2

    - t: a mixture of peaks at the timesteps 0, K/n, 2K/n, ... of width 1/2, with the weights of the training's stage.
    - L_DMD has the gradient (x_0' - x_0'') / mean |x_student - x_0''| in x_student, where x_0' and x_0'' are estimates
      of student and teacher at x_student noised again (distribution matching; Yin et al. 2024, Eqs. 7 and 8).
    - D is a small network on features of the teacher at a noised image.  It learns (D(x_0) - 1)^2 + D(x_student)^2 in
      the same steps (least squares; Mao et al. 2017).  Student and D share no gradient, so that one Adam optimises both
      as two would; trainer.gradient_clip_val bounds the norm of both together.

    Held-out losses are the first term.

    Args:
        teacher: `FrozenDenoiser`, or a denoiser or model.
        solver: steps of the teacher, such as a `sampler.Sampler` of DPM-Solver++ with K = 32 steps.
        guidance: of the teacher, such as `guidance.ClassifierFree`; None: none.
        distance: d, the name of a `distance.Distance`.
        total_steps: updates in which the training passes all stages, in equal parts; the last one goes on.
        modes: for each stage, the weights of the peaks of the law of t.
        matching_weights, adversarial_weights: of each stage.
        adversarial_times: times to which images are noised for D.
        discriminator: channels of the features -> D, such as `network.Discriminator`; None: adversarial_weights are 0.
        features: name of the module of the teacher's network whose output D takes; None: the middle of a U-Net, the
            last hidden layer of an MLP.

    Raises:
        ValueError: for numbers out of range or lists of different lengths; on a call, for an unsuitable teacher.
    """

    REFUSES: ClassVar = {
        "model.SINGLE_LEVEL": "distils many steps between noise levels, and this model has only one: use another model",
        "model.PREDICTS_LABELS": "trains a denoiser, not a classifier: use another model",
        "trainer.strategy.SHARDED": "trains a second network, which trainer=fsdp cannot: use trainer=default",
    }

    @checked
    def __init__(
        self,
        teacher: Any,
        solver: Any,
        guidance: Callable[[Denoiser], Denoiser] | None = None,
        distance: Literal["l2", "l1", "lpips"] = "l2",
        total_steps: Count = 20_000,
        modes: Annotated[Sequence[Sequence[NonNegative]], MinLen(1)] = MODES,
        matching_weights: Sequence[NonNegative] = (0.0, 0.3, 0.5, 0.7),
        adversarial_weights: Sequence[NonNegative] = (0.0, 0.1, 0.2, 0.3),
        adversarial_times: Annotated[Sequence[Time], MinLen(1)] = (0.01, 0.25, 0.5, 0.75),
        discriminator: Callable[[int], nn.Module] | None = None,
        features: str | None = None,
    ) -> None:
        super().__init__()
        if not len(modes) == len(matching_weights) == len(adversarial_weights):
            raise ValueError(
                f"modes, matching_weights and adversarial_weights must have one element for each stage, but have "
                f"{len(modes)}, {len(matching_weights)} and {len(adversarial_weights)}"
            )
        if not all(sum(weights) > 0 for weights in modes):
            raise ValueError("the weights of the modes of a stage must not all be 0")
        if discriminator is None and any(adversarial_weights):
            raise ValueError("adversarial_weights above 0 need a discriminator, such as network.Discriminator")
        self.teacher = FrozenDenoiser.of(teacher)
        self.solver, self.guidance, self.distance, self.features = solver, guidance, Distance(distance), features
        self.total_steps, self.modes = total_steps, modes
        self.matching_weights, self.adversarial_weights = matching_weights, adversarial_weights
        self.adversarial_times, self.make = adversarial_times, discriminator
        self.discriminator: nn.Module | None = None
        self.updates = 0

    def check(self, denoiser: Denoiser, shape: Sequence[int] | None = None) -> None:
        """Make the discriminator for data of `shape`; raise ValueError for a teacher of other data or noise."""
        self.teacher.check(denoiser, shape)
        if shape is not None:
            self.distance.check(shape)
        if self.discriminator is None and self.make is not None and shape is not None:
            device = next(denoiser.parameters()).device
            with torch.no_grad():
                teacher = self.teacher(denoiser)
                channels = self.features_of(teacher, torch.zeros(1, *shape, device=device), 0.5).shape[1]
            self.discriminator = self.make(channels).to(device)

    @property
    def stage(self) -> int:
        """The stage of the training, 0, 1, ..."""
        return min(self.updates * len(self.modes) // self.total_steps, len(self.modes) - 1)

    def probabilities(self, steps: int) -> Tensor:
        """The law of the index of t among `steps` timesteps in this stage, (steps,), float64."""
        weights = torch.tensor(self.modes[self.stage], dtype=torch.float64)
        centres = torch.arange(len(weights), dtype=torch.float64) * (steps / len(weights))
        peaks = (-((torch.arange(steps)[:, None] - centres) ** 2) / 0.5).exp()
        law = (weights * peaks / peaks.sum(0)).sum(1)
        return law / law.sum()

    def forward(self, denoiser: Denoiser, x0: Tensor, generator: Generators = None) -> Tensor:
        """Loss of each image, shape (B,), for x0 of shape (B, ...) and one generator, or one per image.

        All images of a training batch start at the same t, as published.
        """
        teacher = self.teacher(denoiser)
        times = self.solver.timesteps(teacher)
        u = draw_each(uniform, 1 if generator is None else len(x0), x0.device, generator).cpu().double()
        index = torch.searchsorted(self.probabilities(len(times)).cumsum(0), u).clamp(max=len(times) - 1)
        index = index.expand(len(x0))
        t = times[index].to(x0.device)
        eps = draw(x0.shape, generator, x0.dtype, x0.device)
        noise_alone = (index == 0).to(x0.device).reshape(-1, *(1,) * (x0.dim() - 1))
        x = torch.where(noise_alone, denoiser.process.prior_std * eps, denoiser.process.perturb(x0, t, eps))
        target, student = self.target(teacher, x, times, index), denoiser(x, t.to(x0.dtype)).x0
        losses = self.distance(student, target, denoiser.parameterization.range_of(x0.shape))
        if generator is not None:
            return losses
        stage = self.stage
        if self.matching_weights[stage]:
            losses = losses + self.matching_weights[stage] * self.matching(denoiser, teacher, student)
        if self.discriminator is None:
            return losses
        return losses + self.adversarial(teacher, x0, student, self.adversarial_weights[stage])

    @torch.no_grad()
    def target(self, teacher: Denoiser, x: Tensor, times: Tensor, index: Tensor) -> Tensor:
        """The teacher's samples (B, ...) from x at times[index], index (B,)."""
        target = torch.empty_like(x)
        for first in index.unique().tolist():
            chosen = (index == first).nonzero().flatten().to(x.device)
            condition = {key: value[chosen] for key, value in teacher.condition.items()}
            bound = teacher.given(**condition) if condition else teacher
            guided = bound if self.guidance is None else self.guidance(bound)
            start = x[chosen].to(self.solver.dtype)
            *_, (_, end, _) = self.solver.record(guided, start, times=times[first:])(start)
            target[chosen] = end.to(x)
        return target

    def matching(self, denoiser: Denoiser, teacher: Denoiser, student: Tensor) -> Tensor:
        """L_DMD of each image, (B,): its gradient is that of distribution matching, its value has no meaning."""
        with torch.no_grad():
            t = denoiser.process.sample_times(len(student), student.device)
            x = denoiser.process.perturb(student, t, torch.randn_like(student))
            own, real = denoiser(x, t).x0, teacher(x, t).x0
            scale = (student - real).abs().flatten(1).mean(1).clamp(min=1e-5)
            gradient = (own - real) / broadcast(scale, student)
        return 0.5 * (student - (student - gradient).detach()).square().flatten(1).mean(1)

    def adversarial(self, teacher: Denoiser, x0: Tensor, student: Tensor, weight: float) -> Tensor:
        """weight (D(x_student) - 1)^2, for the student alone, and the loss of D, for D alone; (B,)."""
        chosen = torch.randint(len(self.adversarial_times), (len(x0),), device=x0.device)
        t = torch.tensor(self.adversarial_times, device=x0.device)[chosen]
        process = teacher.process
        if process.levels is not None:
            t = (t * process.levels).round().clamp(min=1) / process.levels
        eps = torch.randn_like(x0)
        fake = self.features_of(teacher, process.perturb(student, t, eps), t)
        with torch.no_grad():
            true = self.features_of(teacher, process.perturb(x0, t, torch.randn_like(x0)), t)
        d_fake, d_true = self.discriminator(torch.cat([fake.detach(), true])).chunk(2)
        losses = (d_true - 1).square() + d_fake.square()
        if not weight:
            return losses
        frozen = {name: value.detach() for name, value in self.discriminator.state_dict(keep_vars=True).items()}
        return losses + weight * (functional_call(self.discriminator, frozen, (fake,)) - 1).square()

    def features_of(self, teacher: Denoiser, x: Tensor, t: Tensor | float) -> Tensor:
        """Features (B, C, ...) of the teacher at x (B, ...)."""
        with output_of(self.feature_module(teacher.network)) as kept:
            teacher(x, torch.as_tensor(t, device=x.device, dtype=x.dtype))
        return kept[0]

    def feature_module(self, network: nn.Module) -> nn.Module:
        """The module whose output the discriminator takes."""
        modules = dict(network.named_modules())
        if self.features is not None and self.features in modules:
            return modules[self.features]
        blocks = next((modules[name] for name in ("middle", "hidden") if name in modules), None)
        if blocks is None or self.features is not None:
            raise ValueError(
                f"loss.features={self.features}: {type(network).__name__} has no such module; name one of "
                + ", ".join(name for name in list(modules)[1:9])
            )
        return blocks[-1]

    def after_update(self, network: nn.Module) -> None:
        """Count an update of the weights."""
        self.updates += 1

    def training_state(self) -> dict[str, Any]:
        """Updates so far, and the digest of the teacher, for a checkpoint."""
        return {"updates": self.updates, "teacher": self.teacher.digest}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; raises ValueError if the teacher has other weights than there."""
        self.teacher.check_digest(state.get("teacher"))
        self.updates = state.get("updates", 0)


def uniform(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform random numbers, (count,)."""
    return torch.rand(count, device=device, generator=generator)


@contextmanager
def output_of(module: nn.Module) -> Any:
    """Context that keeps the outputs of a module in a list."""
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, given, output: kept.append(output))
    try:
        yield kept
    finally:
        handle.remove()
