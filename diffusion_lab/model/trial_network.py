"""A network on trial: each of its outputs is compared with its input."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.model.expectations import Unfit, one_line, title


class TrialNetwork:
    """Stands before a denoiser's network, within its context, and refuses an output that is not like the input.

    After `limit` calls zeros answer in the network's place, so that a sampler of a thousand steps comes to its end at
    once; `over` says whether they have.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.network, self.name = denoiser, denoiser.network, title(denoiser.network)
        self.calls, self.limit = 0, None
        self.ask = denoiser.network

    @property
    def over(self) -> bool:
        """Whether zeros have answered since the limit was set."""
        return self.limit is not None and self.calls > self.limit

    def __enter__(self) -> TrialNetwork:
        # Not around it: a loss may know the network's parts by name.
        if isinstance(self.network, nn.Module):
            self.ask = self.network.forward
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
        """The network's output, found to be like x; without a label it is given one."""
        condition = self.some_label(x) | condition
        self.calls += 1
        if self.over:
            return x * 0
        given = f"x {like(x)} and t {like(t)}"
        try:
            output = self.ask(x, t, *more, **condition)
        except Unfit:
            raise
        except Exception as error:
            raise Unfit(f"the network {self.name} cannot take {given}: {one_line(error)}{self.sizes(x, t)}") from error
        if not isinstance(output, Tensor):
            raise Unfit(f"the network {self.name} gives a {type(output).__name__}, a tensor {like(x)} is needed")
        if output.shape != x.shape:
            got, needed = (shape_of(each.shape, len(x)) for each in (output, x))
            raise Unfit(
                f"the network {self.name} gives {got}, {needed} needed, the shape of its input{self.sizes(x, t)}"
            )
        if not output.is_floating_point():
            raise Unfit(f"the network {self.name} gives {output.dtype}, real numbers like its input's {x.dtype} needed")
        if output.device != x.device:
            raise Unfit(f"the network {self.name} gives its output on {output.device} for an input on {x.device}")
        if not output.isfinite().all():
            raise Unfit(f"the network {self.name} gives NaN or infinity for {given}, t={t.tolist()}, x being finite")
        return output

    def some_label(self, x: Tensor) -> dict[str, Tensor]:
        """A label for each of x (B, ...), if the network takes any."""
        zeros = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return {} if self.denoiser.classes is None else {"label": zeros}

    @torch.no_grad()
    def sizes(self, x: Tensor, t: Tensor) -> str:
        """In words the sizes of images next to that of x which the network does take."""
        for unit in (2**k for k in range(1, 7)) if x.dim() == 4 else ():
            found = []
            for height, width in (tuple((n + up) // unit * unit for n in x.shape[2:]) for up in (0, unit - 1)):
                like_it = x.new_zeros(*x.shape[:2], height, width)
                with suppress(Exception):
                    output = self.ask(like_it, t, **self.some_label(x))
                    if height and width and like_it.shape != x.shape and output.shape == like_it.shape:
                        found.append(f"{height}x{width}")
            if found:
                return f"; it takes images of {' and '.join(found)}"
        return ""


def check_network(denoiser: Denoiser, network: TrialNetwork, x0: Tensor) -> list[str]:
    """The network at two times while training and not, its inputs apart and together; remarks on what it ignores."""
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
        raise Unfit(f"the output of the network {name} does not depend on its input")
    x = x.detach()
    with torch.no_grad():
        again, later, alone = (
            network.forward(*of) for of in ((x, c_noise[0]), (x, c_noise[1]), (x[:1], c_noise[0][:1]))
        )
    if not torch.allclose(first, again, rtol=1e-3, atol=1e-6):
        return [f"the network {name} is random in eval mode: a sample is not the same when it is drawn again"]
    notes = []
    if first.dtype.itemsize < x.dtype.itemsize:
        given, kept = (str(one.dtype).removeprefix("torch.") for one in (x, first))
        notes.append(f"the network {name} gives {kept} for inputs of {given}, and its precision is lost")
    if not connected:
        notes.append(f"the output of the network {name} has no gradient in its input: likelihood=flow would be wrong")
    if again.any() and torch.equal(again, later) and not torch.equal(*c_noise):
        notes.append(f"the output of the network {name} does not depend on t")
    if not torch.allclose(again[:1], alone, rtol=1e-2, atol=1e-5):
        notes.append(f"the network {name} mixes the items of a batch: a sample depends on those drawn with it")
    return notes


def like(x: Tensor) -> str:
    """Shape and type of a tensor that a network is given."""
    return f"{shape_of(x.shape, len(x))} {str(x.dtype).removeprefix('torch.')}"


def shape_of(shape: torch.Size, batch: int) -> str:
    """A shape whose batch is called B."""
    return str(tuple(shape)).replace(f"({batch},", "(B,", 1)
