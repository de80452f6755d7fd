"""Halve a request that the service rejects as too large, until it is accepted or a single item is left."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

TOO_MUCH = frozenset({400, 413, 414, 422, 431})
"""Statuses that may mean "too many items" or "too large". They may also mean that one item is bad; halving finds it."""


def halves(items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Split a sequence in two; if the number of items is odd, the first half has one more.

    This rule must never change, because the idempotency keys of batches depend on it.
    """
    middle = (len(items) + 1) // 2
    return items[:middle], items[middle:]


async def each_half(items: Sequence[T], send: Callable[[Sequence[T]], Awaitable[bool]]) -> bool:
    """Send both halves in order, the second one even if the first is rejected; return whether both were accepted."""
    return all([await send(half) for half in halves(items) if half])
