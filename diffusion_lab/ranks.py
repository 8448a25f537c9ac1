"""Communication between the ranks of a distributed job; without one, there is a single rank 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class RankFailed(RuntimeError):
    """Another rank has failed."""


def rank_and_world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) without torch.distributed."""
    distributed = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)


def gather(value: T) -> list[T]:
    """Return the values of all ranks, in rank order, on every rank."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """Return rank 0's value on every rank."""
    if rank_and_world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def shard(items: Sequence[T]) -> Sequence[T]:
    """This rank's shard: item k belongs to rank k modulo the number of ranks."""
    rank, world = rank_and_world()
    return items[rank::world]


def shard_range(count: int) -> range:
    """This rank's contiguous shard of 0..count-1; the sizes of the shards differ by at most 1."""
    rank, world = rank_and_world()
    return range(rank * count // world, (rank + 1) * count // world)


@contextmanager
def synchronized() -> Iterator[None]:
    """Context at whose end all ranks wait for each other; if one fails, all raise instead of waiting for it.

    Raises:
        RankFailed: on the ranks that did not fail, with the message of the first one that did.
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
    """Run `work` on rank 0 and return its result on every rank."""
    result: Any = None
    with synchronized():
        if rank_and_world()[0] == 0:
            result = work()
    return from_first(result)
