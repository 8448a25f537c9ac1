"""The processes of one job, which share its work: who am I, what do the others have, is everybody well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class RankFailed(RuntimeError):
    """Another rank has failed."""


def rank_and_world() -> tuple[int, int]:
    """(number of this process, number of processes); (0, 1) in a single process."""
    alone = not (dist.is_available() and dist.is_initialized())
    return (0, 1) if alone else (dist.get_rank(), dist.get_world_size())


def gather(value: T) -> list[T]:
    """The value of every rank, in rank order, on every rank."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """Rank 0's value, on every rank."""
    if rank_and_world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def shard(items: Sequence[T]) -> Sequence[T]:
    """This rank's share: item k falls to rank k modulo the number of ranks."""
    rank, world = rank_and_world()
    return items[rank::world]


def share_of(count: int) -> range:
    """This rank's share of 0..count-1, consecutive and as even as can be."""
    rank, world = rank_and_world()
    return range(rank * count // world, (rank + 1) * count // world)


@contextmanager
def synchronized() -> Iterator[None]:
    """No rank goes on before all have left this block, and a failure of one is raised by all, instead of a wait.

    Raises:
        RankFailed: on the ranks that did not fail themselves, with the message of the one that did.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failures = gather(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, message in enumerate(failures):
        if message is not None:
            raise RankFailed(f"rank {rank} failed: {message}")


def on_first(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on every rank."""
    found: Any = None
    with synchronized():
        if rank_and_world()[0] == 0:
            found = work()
    return from_first(found)
