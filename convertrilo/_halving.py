"""Halve what the service refuses as too much, until it is accepted or a single item is left."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

TOO_MUCH = frozenset({400, 413, 414, 422, 431})
"""Statuses that may mean "too many" or "too large"; or that one of the items is bad, which halving finds out, too."""


def halves(items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Split a sequence in two, always in the same place; of an odd number the first half has one more."""
    middle = (len(items) + 1) // 2
    return items[:middle], items[middle:]


async def each_half(items: Sequence[T], send: Callable[[Sequence[T]], Awaitable[bool]]) -> bool:
    """Send both halves, one after the other, even if the first one is refused; return whether both were accepted."""
    return all([await send(half) for half in halves(items) if half])
