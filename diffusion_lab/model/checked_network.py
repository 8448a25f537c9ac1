"""Checks of a network: each output must have the shape, device and type of its input."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.class_posterior import ClassPosterior
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.model.checks import ComponentError, name_of, one_line


class CheckedNetwork:
    """Context that checks every call of a denoiser's network and raises if the output is not like the input.

    After `limit` calls the network is replaced by zeros, so that a sampler with a thousand steps ends quickly.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.network, self.name = denoiser, denoiser.network, name_of(denoiser.network)
        self.calls, self.limit = 0, None
        self.call = denoiser.network

    @property
    def limit_reached(self) -> bool:
        """Whether the network was replaced by zeros since the limit was set."""
        return self.limit is not None and self.calls > self.limit

    def __enter__(self) -> CheckedNetwork:
        # Replaces forward instead of wrapping the module: a loss may access submodules by name.
        if isinstance(self.network, nn.Module):
            self.call = self.network.forward
            self.network.forward = self.forward
        else:
            self.denoiser.network = self.forward
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self.network, nn.Module):
            del self.network.forward
        else:
            self.denoiser.network = self.network

    def forward(self, x: Tensor, t: Tensor, *more: Any, **condition: Any) -> Tensor:
        """The network's output after the checks; a conditional network gets a default label."""
        condition = self.default_label(x) | condition
        self.calls += 1
        wanted = self.denoiser.output_shape(x)
        if self.limit_reached:
            return x.new_zeros(wanted)
        inputs = f"x {like(x)} and t {like(t)}"
        try:
            output = self.call(x, t, *more, **condition)
        except ComponentError:
            raise
        except Exception as error:
            raise ComponentError(
                f"the network {self.name} cannot take {inputs}: {one_line(error)}{self.accepted_sizes(x, t)}"
            ) from error
        if not isinstance(output, Tensor):
            raise ComponentError(
                f"the network {self.name} returns a {type(output).__name__}, expected a tensor {like(x)}"
            )
        if list(output.shape) != wanted:
            got, expected = (shape_of(each, len(x)) for each in (output.shape, wanted))
            why = "the shape of its input"
            if isinstance(self.denoiser, ClassPosterior):
                why = "a logit for each class"
            elif wanted != list(x.shape):
                why = "twice the channels of its input, for a learned range of variances"
            raise ComponentError(
                f"the network {self.name} returns {got}, expected {expected}, {why}{self.accepted_sizes(x, t)}"
            )
        if not output.is_floating_point():
            raise ComponentError(
                f"the network {self.name} returns {output.dtype}, expected real numbers like its input's {x.dtype}"
            )
        if output.device != x.device:
            raise ComponentError(
                f"the network {self.name} returns its output on {output.device} for an input on {x.device}"
            )
        if not output.isfinite().all():
            raise ComponentError(f"the network {self.name} returns NaN or infinity for finite {inputs}, t={t.tolist()}")
        return output

    def default_label(self, x: Tensor) -> dict[str, Tensor]:
        """Label 0 for each of x (B, ...), if the network is conditional."""
        if self.denoiser.classes is None or isinstance(self.denoiser, ClassPosterior):
            return {}
        return {"label": torch.zeros(len(x), dtype=torch.int64, device=x.device)}

    @torch.no_grad()
    def accepted_sizes(self, x: Tensor, t: Tensor) -> str:
        """The image sizes closest to that of x that the network accepts, for messages."""
        for unit in (2**k for k in range(1, 7)) if x.dim() == 4 else ():
            accepted = []
            for height, width in (tuple((n + up) // unit * unit for n in x.shape[2:]) for up in (0, unit - 1)):
                trial = x.new_zeros(*x.shape[:2], height, width)
                wanted = self.denoiser.output_shape(trial)
                with suppress(Exception):
                    output = self.call(trial, t, **self.default_label(x))
                    if height and width and trial.shape != x.shape and list(output.shape) == wanted:
                        accepted.append(f"{height}x{width}")
            if accepted:
                return f"; it accepts images of {' and '.join(accepted)}"
        return ""


def check_network(denoiser: Denoiser, network: CheckedNetwork, x0: Tensor) -> list[str]:
    """Check the network in training and eval mode, at two times and batch sizes; return warnings."""
    process, name = denoiser.process, network.name
    with torch.no_grad():
        for mode in (True, False):
            denoiser.train(mode)
            t = process.sample_times(len(x0), x0.device)
            denoiser(process.perturb(x0, t, torch.randn_like(x0)), t)
    ends = torch.tensor([1.0, process.t_train_min], device=x0.device)
    c_noise = [denoiser.c_noise(t, x0).expand(len(x0)).contiguous() for t in ends]
    x = torch.randn_like(x0).to(denoiser.network_dtype or x0.dtype).requires_grad_()
    with torch.enable_grad():
        first = network.forward(x, c_noise[0])
        connected = first.requires_grad and torch.autograd.grad(first.sum(), x, allow_unused=True)[0] is not None
    if first.any() and torch.equal(first[0], first[1]) and not connected:
        raise ComponentError(f"the output of the network {name} does not depend on its input")
    x = x.detach()
    with torch.no_grad():
        again, later, alone = (
            network.forward(*of) for of in ((x, c_noise[0]), (x, c_noise[1]), (x[:1], c_noise[0][:1]))
        )
    if not torch.allclose(first, again, rtol=1e-3, atol=1e-6):
        return [f"the network {name} is random in eval mode: samples are not reproducible"]
    messages = []
    if first.dtype.itemsize < x.dtype.itemsize:
        given, returned = (str(each.dtype).removeprefix("torch.") for each in (x, first))
        messages.append(f"the network {name} returns {returned} for inputs of {given}, which loses precision")
    if not connected:
        wrong = "guidance" if isinstance(denoiser, ClassPosterior) else "likelihood=flow"
        messages.append(f"the output of the network {name} has no gradient in its input: {wrong} would be wrong")
    ignored = again.any() and torch.equal(again, later) and not torch.equal(*c_noise)
    if ignored and not uses_t_once_trained(network, x, c_noise):
        messages.append(f"the output of the network {name} does not depend on t")
    if not torch.allclose(again[:1], alone, rtol=1e-2, atol=1e-5):
        messages.append(f"the network {name} mixes the items of a batch: a sample depends on the others in its batch")
    return messages


def uses_t_once_trained(network: CheckedNetwork, x: Tensor, c_noise: list[Tensor]) -> bool:
    """Whether the output depends on t if weights that are zero before the training are not; they are zero again then.

    The last layers of residual blocks start from zero (Dhariwal & Nichol 2021), so that only x reaches the output.
    """
    zero = [weight for weight in network.network.parameters() if not weight.any()]
    with torch.no_grad():
        try:
            for weight in zero:
                weight.normal_(std=0.1)
            first, later = (network.forward(x, one) for one in c_noise)
        finally:
            for weight in zero:
                weight.zero_()
    return not torch.equal(first, later)


def like(x: Tensor) -> str:
    """Shape and dtype of a tensor, for messages."""
    return f"{shape_of(x.shape, len(x))} {str(x.dtype).removeprefix('torch.')}"


def shape_of(shape: torch.Size, batch: int) -> str:
    """A shape with B in place of the batch size."""
    return str(tuple(shape)).replace(f"({batch},", "(B,", 1)
