"""Webhook deduplication: the interface of a dedupe store, the store in memory, and handling an event once."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from types import TracebackType
from typing import Literal, Protocol, Self

import anyio

from convertrilo._clock import Clock

Key = tuple[str, str]
"""The identity of an event: its job id and its name."""

Claim = Literal["mine", "done", "busy"]
"""The result of claiming an event: `mine` (handle it), `done` (already handled) or `busy` (being handled)."""

LEASE = 60.0
"""Seconds after which a claim ends unless it is renewed, so that others can claim the events of a crashed process."""

_POLL = 0.25


class DedupeStore(Protocol):
    """Remembers which events were handled. Each user enters the store (`async with`) before use."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def claim(self, key: Key) -> Claim:
        """Claim an event for `LEASE` seconds, unless it was handled or is claimed."""
        ...

    async def renew(self, key: Key) -> None:
        """Extend a claim by `LEASE` seconds from now."""
        ...

    async def finish(self, key: Key) -> None:
        """Remember that an event was handled."""
        ...

    async def release(self, key: Key) -> None:
        """Give up a claim: the event was not handled."""
        ...

    async def unseen(self, job_ids: Sequence[str], events: Collection[str]) -> list[str]:
        """Return the jobs for which none of these events was handled."""
        ...


async def once(store: DedupeStore, key: Key, work: Callable[[], Awaitable[object]], clock: Clock) -> bool:
    """Handle an event unless it was handled before; while another task or process handles it, wait for the outcome.

    An event whose work raises counts as not handled.

    Args:
        store: The dedupe store, which is entered.
        key: The event's identity.
        work: Handles the event.
        clock: Sleeps between claims.

    Returns:
        Whether this call handled the event.
    """
    while (claim := await store.claim(key)) == "busy":
        await clock.sleep(_POLL)
    if claim == "done":
        return False
    is_handled = False
    try:
        await with_claim(store, key, work, clock)
        is_handled = True
    finally:
        with anyio.CancelScope(shield=True):
            await (store.finish(key) if is_handled else store.release(key))
    return True


async def with_claim(store: DedupeStore, key: Key, work: Callable[[], Awaitable[object]], clock: Clock) -> None:
    """Handle a claimed event, and renew the claim until the work ends."""
    failure: Exception | None = None

    async def renew_claim() -> None:
        while True:
            await clock.sleep(LEASE / 3)
            with contextlib.suppress(Exception):  # `finish` will fail as well, and its error is raised
                await store.renew(key)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(renew_claim)
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # raised below, outside of the task group
            failure = error
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Only a task that the work awaited was cancelled. This error must not end the surrounding tasks.
            failure = RuntimeError("a task that the handler awaited was cancelled")
            failure.__cause__ = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


class MemoryDedupe:
    """Remembers events in the memory of one process.

    Args:
        size: The number of handled events to remember; the oldest are forgotten first.
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
        """Do nothing: the events are forgotten with the object."""

    async def claim(self, key: Key) -> Claim:
        """Claim an event, unless it was handled or is claimed."""
        if key in self._handled:
            return "done"
        if key in self._claimed:
            return "busy"
        self._claimed.add(key)
        return "mine"

    async def renew(self, key: Key) -> None:
        """Do nothing: a claim in memory ends with the process that holds it."""

    async def finish(self, key: Key) -> None:
        """Remember that an event was handled."""
        self._claimed.discard(key)
        self._handled[key] = None
        while len(self._handled) > self._size:
            self._handled.popitem(last=False)

    async def release(self, key: Key) -> None:
        """Give up a claim."""
        self._claimed.discard(key)

    async def unseen(self, job_ids: Sequence[str], events: Collection[str]) -> list[str]:
        """Return the jobs for which none of these events was handled."""
        return [job_id for job_id in job_ids if not any((job_id, event) in self._handled for event in events)]
