"""From the names and shapes of another program's weights to ours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

Turn = Callable[[Tensor], Tensor]


def as_it_is(weight: Tensor) -> Tensor:
    return weight


class Source(NamedTuple):
    """A layer of another program: its name in its block, what its two tensors are called, and how its weight lies."""

    name: str
    weight: str = "weight"
    bias: str = "bias"
    turn: Turn = as_it_is


Parts = Mapping[str, Mapping[str, tuple[Source, ...]]]
"""For each kind of block: the name of each of our layers, and those that lie in it one below the other."""


class Link(NamedTuple):
    """One tensor of another program: the name of the one of ours that it belongs to, its own, and how it is turned."""

    ours: str
    theirs: str
    turn: Turn = as_it_is


def links(blocks: Iterable[tuple[str, str, str]], parts: Parts, present: Collection[str]) -> Iterator[Link]:
    """The links of blocks (kind, our name, their name), in their order; layers not among `present` are left out."""
    for kind, ours, theirs in blocks:
        for part, sources in parts[kind].items():
            for source in sources if f"{ours}{part}.weight" in present else ():
                yield Link(f"{ours}{part}.weight", f"{theirs}{source.name}.{source.weight}", source.turn)
                yield Link(f"{ours}{part}.bias", f"{theirs}{source.name}.{source.bias}")


def convert(
    network: nn.Module,
    official: Mapping[str, Tensor],
    joined: Iterable[Link],
    unread: Collection[str] = (),
    strict: bool = True,
) -> dict[str, Tensor]:
    """The state dict of `network` from the weights of another program.

    Official tensors that are linked to none of ours, and those named in `unread`, may be there or not.
    Raises ValueError, in one line, where others are missing or left over, or a shape is not the network's; unless
    `strict`, those are left out.
    """
    own = network.state_dict()
    used, unused = [], set(unread)
    for link in joined:
        used.append(link) if link.ours in own else unused.add(link.theirs)
    missing = [link.theirs for link in used if link.theirs not in official]
    left = sorted(official.keys() - {link.theirs for link in used} - unused)
    if strict and (missing or left):
        message = [f"{word} {listed(names)}" for word, names in (("missing", missing), ("left over", left)) if names]
        raise ValueError(f"these weights are not of this {type(network).__name__}: {'; '.join(message)}")
    groups: dict[str, list[Link]] = {}
    for link in used:
        groups.setdefault(link.ours, []).append(link)
    found = {}
    for name, group in groups.items():
        with nullcontext() if strict else suppress(ValueError, KeyError):
            found[name] = gather(group, official, own[name])
    return found


def gather(group: list[Link], official: Mapping[str, Tensor], own: Tensor) -> Tensor:
    """The tensors of a group one below the other, in the shape of `own`; 1x1 convolutions are matrices as well."""
    tensors = [official[link.theirs] for link in group]
    size, *rest = own.shape
    share = torch.Size([size // len(group), *rest])
    turned = [link.turn(t) if t.dim() > 1 else t for link, t in zip(group, tensors, strict=True)]
    for link, tensor, given in zip(group, turned, tensors, strict=True):
        if core(tensor) != core(own[: share[0]]):
            raise ValueError(
                f"{link.theirs!r} has shape {tuple(given.shape)}, which is not that of our {link.ours!r}, "
                f"{tuple(share)}: give the network the settings of these weights"
            )
    return torch.cat(turned).reshape(own.shape)


def core(tensor: Tensor) -> list[int]:
    """Shape of a tensor without the two sides of a 1x1 kernel."""
    shape = list(tensor.shape)
    return shape[:2] if shape[2:] == [1, 1] else shape


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
