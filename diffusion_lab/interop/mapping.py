"""Convert names and shapes of another program's weights to ours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

Transform = Callable[[Tensor], Tensor]


def identity(weight: Tensor) -> Tensor:
    return weight


class Source(NamedTuple):
    """A layer of another program: its name in its block, names of its two tensors, and a transform of its weight."""

    name: str
    weight: str = "weight"
    bias: str = "bias"
    transform: Transform = identity


Parts = Mapping[str, Mapping[str, tuple[Source, ...]]]
"""Type of block -> our layer in it -> the official layers whose weights are concatenated in it."""


class Link(NamedTuple):
    """A tensor of another program: the name of our tensor, its own name, and its transform."""

    ours: str
    theirs: str
    transform: Transform = identity


def links(blocks: Iterable[tuple[str, str, str]], parts: Parts, present: Collection[str]) -> Iterator[Link]:
    """Yield the links of blocks (type, our name, their name) in order, without layers that are not in `present`."""
    for kind, ours, theirs in blocks:
        for part, sources in parts[kind].items():
            for source in sources if f"{ours}{part}.weight" in present else ():
                yield Link(f"{ours}{part}.weight", f"{theirs}{source.name}.{source.weight}", source.transform)
                yield Link(f"{ours}{part}.bias", f"{theirs}{source.name}.{source.bias}")


def convert(
    network: nn.Module,
    official: Mapping[str, Tensor],
    links: Iterable[Link],
    ignored: Collection[str] = (),
    strict: bool = True,
) -> dict[str, Tensor]:
    """Convert the weights of another program to a state dict of `network`.

    Official tensors whose link names none of ours, and those in `ignored`, are optional. Raises ValueError if others
    are missing or unexpected, or a shape differs; unless `strict`, those are skipped.
    """
    ours = network.state_dict()
    used, optional = [], set(ignored)
    for link in links:
        used.append(link) if link.ours in ours else optional.add(link.theirs)
    missing = [link.theirs for link in used if link.theirs not in official]
    unexpected = sorted(official.keys() - {link.theirs for link in used} - optional)
    if strict and (missing or unexpected):
        problems = (("missing", missing), ("unexpected", unexpected))
        message = "; ".join(f"{problem} {listed(names)}" for problem, names in problems if names)
        raise ValueError(f"these weights are not of this {type(network).__name__}: {message}")
    groups: dict[str, list[Link]] = {}
    for link in used:
        groups.setdefault(link.ours, []).append(link)
    found = {}
    for name, group in groups.items():
        with nullcontext() if strict else suppress(ValueError, KeyError):
            found[name] = concatenate(group, official, ours[name])
    return found


def concatenate(group: list[Link], official: Mapping[str, Tensor], ours: Tensor) -> Tensor:
    """Concatenate the tensors of a group to the shape of `ours`; matrices and 1x1 convolutions are interchangeable."""
    tensors = [official[link.theirs] for link in group]
    size, *rest = ours.shape
    expected = torch.Size([size // len(group), *rest])
    transformed = [link.transform(t) if t.dim() > 1 else t for link, t in zip(group, tensors, strict=True)]
    for link, tensor, original in zip(group, transformed, tensors, strict=True):
        if core_shape(tensor) != core_shape(ours[: expected[0]]):
            raise ValueError(
                f"{link.theirs!r} has shape {tuple(original.shape)}, which is not that of our {link.ours!r}, "
                f"{tuple(expected)}: give the network the settings of these weights"
            )
    return torch.cat(transformed).reshape(ours.shape)


def core_shape(tensor: Tensor) -> list[int]:
    """Return the shape of a tensor without the dimensions of a kernel of one pixel."""
    shape = list(tensor.shape)
    return shape[:2] if shape[2:] in ([1], [1, 1]) else shape


def listed(names: list[str]) -> str:
    """Format the first three names, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
