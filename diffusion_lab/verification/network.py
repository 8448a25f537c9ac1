"""Checks of networks: shapes, gradients, dependence on x and t, independent items, and speed."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.verification.check import Chart, Check, Finding, largest, relative, seeded

ITEMS, CHANGE = 3, 0.1
"""Items of a batch; standard deviation of the perturbation of weights, as zero layers of a new network hide others."""

TIMES = (2.0, 7.0, 5.0)
"""c_noise of each: valid for networks conditioned on a level of ten, on 999 t, and on log sigma."""


def check_network(network: nn.Module, shape: Sequence[int], classes: int | None = None) -> Iterator[Finding]:
    """Yield the checks of a network for data of `shape`, with labels of `classes` if there are any, and its charts."""
    x = torch.randn(ITEMS, *shape, generator=seeded())
    t, labels = torch.tensor(TIMES), labels_of(classes, ITEMS)
    before = x.clone()
    new = network.eval()(x, t, **labels)
    yield Check("parameters", sum(p.numel() for p in network.parameters()), tolerance=None)
    yield Check("items of the output", len(new), ITEMS)
    yield Check("output sizes that are not those of the data", wrong_sizes(new, x))
    yield Check("outputs of a new network that are not finite", int((~new.isfinite()).sum()))
    yield Check("scale of the output of a new network", new.detach().square().mean().sqrt().item(), 10.0, 0.0, "<=")
    yield Check("change of the input", largest(x - before))
    network = perturbed(network)
    yield from check_dependence(network, x, t, labels)
    yield from check_independence(network, x, t, labels)
    yield from check_gradients(network, x, t, labels)
    if torch.cuda.is_available():
        yield from check_cuda(network.eval(), x, t, labels)
    yield from check_speed(network, shape, classes)


def labels_of(classes: int | None, count: int) -> dict[str, Tensor]:
    """Labels 0, 1, ... for a class-conditional network; nothing for others."""
    return {} if classes is None else {"label": torch.arange(count) % classes}


def wrong_sizes(output: Tensor, x: Tensor) -> int:
    """How many sizes of an output are neither the data's, nor twice its channels; logits (B, K) have none."""
    if output.dim() == 2 and x.dim() == 4:
        return 0
    if output.dim() != x.dim():
        return 1
    channels, given = output.shape[1], x.shape[1]
    return int(channels not in (given, 2 * given)) + int(output.shape[2:] != x.shape[2:])


def perturbed(network: nn.Module) -> nn.Module:
    """A copy with all weights slightly perturbed at random, in evaluation mode."""
    network, generator = copy.deepcopy(network), seeded()
    with torch.no_grad():
        for parameter in network.parameters():
            std = CHANGE / max(parameter[0].numel() if parameter.dim() > 1 else 1, 1) ** 0.5
            parameter += std * torch.randn(parameter.shape, generator=generator).to(parameter)
    return network.eval()


def check_dependence(network: nn.Module, x: Tensor, t: Tensor, labels: dict[str, Tensor]) -> Iterator[Check]:
    """The output depends on x, on t unless the network says that it is not conditioned, and on labels."""
    with torch.no_grad():
        output = network(x, t, **labels)
        yield Check("a second call in evaluation - the first", largest(network(x, t, **labels) - output))
        scale = largest(output) or 1.0
        other = network(x + torch.randn(x.shape, generator=seeded(1)), t, **labels)
        yield Check("change with x, of the output", largest(other - output) / scale, 1e-4, 0.0, ">=")
        free = getattr(network, "levels", 0) is None or getattr(network, "conditional", True) is False
        other = largest(network(x, t.flip(0) + 1, **labels) - output) / scale
        if free:
            yield Check("change with t, on which it is not conditioned", other)
        else:
            yield Check("change with t, of the output", other, 1e-5, 0.0, ">=")
        if labels:
            other = network(x, t, label=labels["label"].roll(1))
            yield Check("change with the label, of the output", largest(other - output) / scale, 1e-5, 0.0, ">=")


def check_independence(network: nn.Module, x: Tensor, t: Tensor, labels: dict[str, Tensor]) -> Iterator[Check]:
    """An item's output is that of the item alone; in training no gradient goes from one item to another."""
    with torch.no_grad():
        whole = network(x, t, **labels)
        each = (slice(k, k + 1) for k in range(ITEMS))
        alone = [network(x[one], t[one], **{name: label[one] for name, label in labels.items()}) for one in each]
        yield Check("an item alone - in a batch", relative(torch.cat(alone), whole), 0.0, 1e-4)
    seen = x.clone().requires_grad_()
    output = network.train()(seen, t, **labels)
    weights = torch.randn(output[0].shape, generator=seeded(2))
    (gradient,) = torch.autograd.grad((output[0] * weights).sum(), seen)
    network.eval()
    own = largest(gradient[0])
    yield Check("gradient of an item in others, in training", largest(gradient[1:]) / (own or 1.0), 0.0, 1e-6)


def check_gradients(network: nn.Module, x: Tensor, t: Tensor, labels: dict[str, Tensor]) -> Iterator[Finding]:
    """Every parameter gets a finite gradient that is not 0."""
    output = network.train()(x, t, **labels)
    output.mul(torch.randn(output.shape, generator=seeded(3))).sum().backward()
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    norms = [0.0 if p.grad is None else (p.grad.square().mean().sqrt() / CHANGE).item() for _, p in named]
    yield Check("parameters without a gradient", sum(norm == 0 for norm in norms))
    infinite = sum(p.grad is not None and not p.grad.isfinite().all().item() for _, p in named)
    yield Check("parameters whose gradient is not finite", infinite)
    flowing = sorted(norm for norm in norms if norm > 0)
    if flowing:
        yield Check("largest gradient / smallest, of a parameter", flowing[-1] / flowing[0], tolerance=None)
    line = [(index + 1, norm) for index, norm in enumerate(norms) if norm > 0]
    yield Chart("gradient_flow", "parameter, in the order of the network", "gradient, root mean square", {"": line},
                scales=("linear", "log"))  # fmt: skip
    network.eval().zero_grad()


def check_cuda(network: nn.Module, x: Tensor, t: Tensor, labels: dict[str, Tensor]) -> Iterator[Check]:
    """The output on a GPU, in float32 and with bfloat16 products."""
    want, moved = network(x, t, **labels), copy.deepcopy(network).cuda()
    on_gpu = [x.cuda(), t.cuda()], {name: value.cuda() for name, value in labels.items()}
    with torch.no_grad():
        yield Check("on the GPU - on the CPU", relative(moved(*on_gpu[0], **on_gpu[1]).cpu(), want), 0.0, 1e-2)
        with torch.autocast("cuda", torch.bfloat16):
            half = moved(*on_gpu[0], **on_gpu[1]).float().cpu()
        yield Check("with bfloat16 products - float32", relative(half, want), 0.0, 0.2)


def check_speed(network: Any, shape: Sequence[int], classes: int | None) -> Iterator[Finding]:
    """Items per second in training against the size of the batch; reported."""
    rates = []
    for count in (1, 4, 16):
        x, t = torch.randn(count, *shape, generator=seeded()), torch.full((count,), 3.0)
        labels, times = labels_of(classes, count), []
        for _ in range(2):
            begin = time.perf_counter()
            network(x, t, **labels).sum().backward()
            times.append(time.perf_counter() - begin)
            if times[-1] > 2:
                break
        rates.append((count, count / min(times)))
        if times[-1] > 2:
            break
    network.zero_grad()
    yield Check(f"items per second, forward and backward, batch of {rates[-1][0]}", rates[-1][1], tolerance=None)
    yield Chart("throughput", "items of a batch", "items per second", {"": rates}, scales=("log", "log"))
