"""Which webhook events were handled: each once, by its job and name; here in memory, in `_dedupe_sqlite` in a file."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from types import TracebackType
from typing import Literal, Protocol, Self

import anyio

from convertrilo._clock import Clock

Key = tuple[str, str]
"""An event's job id and name."""

Claim = Literal["mine", "done", "busy"]
"""Who is to handle an event: the one who asked; nobody any more; or nobody else while somebody is at it."""

LEASE = 60.0
"""Seconds after which an event is free again whose handler's process died; while it lives, it renews its claim."""

_POLL = 0.25


class DedupeStore(Protocol):
    """Remembers which events were handled. Entered before use, as often as there are users of it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def claim(self, key: Key) -> Claim:
        """Claim an event for `LEASE` seconds, unless it was handled or is claimed."""
        ...

    async def renew(self, key: Key) -> None:
        """Claim an event for `LEASE` seconds more."""
        ...

    async def finish(self, key: Key) -> None:
        """Remember that an event was handled."""
        ...

    async def release(self, key: Key) -> None:
        """Give a claim back: the event was not handled."""
        ...

    async def unseen(self, job_ids: Sequence[str], events: Collection[str]) -> list[str]:
        """Return the jobs of which none of these events was handled."""
        ...


async def once(store: DedupeStore, key: Key, work: Callable[[], Awaitable[object]], clock: Clock) -> bool:
    """Do the work of an event unless it is done; while somebody else is at it, wait for what comes of that.

    Returns:
        Whether it was done now. If it raises, the event counts as not handled.
    """
    while (claim := await store.claim(key)) == "busy":
        await clock.sleep(_POLL)
    if claim == "done":
        return False
    is_done = False
    try:
        await with_claim(store, key, work, clock)
        is_done = True
    finally:
        with anyio.CancelScope(shield=True):
            await (store.finish(key) if is_done else store.release(key))
    return True


async def with_claim(store: DedupeStore, key: Key, work: Callable[[], Awaitable[object]], clock: Clock) -> None:
    """Do the work of an event that is claimed, and renew the claim as long as that takes."""
    failure: Exception | None = None

    async def keep() -> None:
        while True:
            await clock.sleep(LEASE / 3)
            with contextlib.suppress(Exception):  # finishing fails too then, and says why
                await store.renew(key)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep)
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # raised below, where no task group wraps it
            failure = error
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Of a task that the work awaited: it would end the tasks around this one, which nobody wants to end.
            failure = RuntimeError("what it waited for was cancelled")
            failure.__cause__ = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


class MemoryDedupe:
    """Remembers events in memory: for one process, until it ends.

    Args:
        size: How many handled events to remember; the oldest are forgotten first.
    """

    def __init__(self, size: int = 100_000) -> None:
        self._size = size
        self._claimed: set[Key] = set()
        self._handled: OrderedDict[Key, None] = OrderedDict()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remember them still: they are forgotten with the object."""

    async def claim(self, key: Key) -> Claim:
        """Claim an event, unless it was handled or is claimed."""
        if key in self._handled:
            return "done"
        if key in self._claimed:
            return "busy"
        self._claimed.add(key)
        return "mine"

    async def renew(self, key: Key) -> None:
        """Do nothing: who claims it dies with this memory."""

    async def finish(self, key: Key) -> None:
        """Remember that an event was handled."""
        self._claimed.discard(key)
        self._handled[key] = None
        while len(self._handled) > self._size:
            self._handled.popitem(last=False)

    async def release(self, key: Key) -> None:
        """Give a claim back."""
        self._claimed.discard(key)

    async def unseen(self, job_ids: Sequence[str], events: Collection[str]) -> list[str]:
        """Return the jobs of which none of these events was handled."""
        return [job_id for job_id in job_ids if not any((job_id, event) in self._handled for event in events)]
