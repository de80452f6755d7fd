"""Progress reports of a tool call, and a record of the operations that the call began."""

import math
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import anyio

from convertrilo._tasks import run_all
from convertrilo.journal import Entry, Journal

T = TypeVar("T")

Arguments = Mapping[str, Any]
"""The arguments of a tool, as the agent gave them; the tool's schema has been checked."""

CallProgress = tuple[float, float | None, str]
"""The amount done, the total (None if unknown), and a description."""

ReportProgress = Callable[[CallProgress], Awaitable[None]]

_begun: ContextVar[list[Entry] | None] = ContextVar("_begun", default=None)


class RecordingJournal(Journal):
    """A journal that records, for `recording_entries`, the operations that are begun."""

    async def begin(
        self, *, service: str, sender: str = "", operation: str, key: str, body: bytes, identity: str, name: str | None
    ) -> Entry:
        """See `Journal.begin`."""
        entry = await super().begin(
            service=service, sender=sender, operation=operation, key=key, body=body, identity=identity, name=name
        )
        begun = _begun.get()
        if begun is not None:
            begun.append(entry)
        return entry


@contextmanager
def recording_entries() -> Generator[list[Entry]]:
    """Yield a list that grows by each operation that this block and its tasks begin in a `RecordingJournal`."""
    begun: list[Entry] = []
    token = _begun.set(begun)
    try:
        yield begun
    finally:
        _begun.reset(token)


async def run_with_progress(
    report: ReportProgress, work: Callable[[Callable[[CallProgress], None]], Awaitable[T]]
) -> T:
    """Run work whose progress callback is synchronous, and report its progress.

    Args:
        report: Reports the progress to the agent.
        work: Takes the synchronous callback.
    """
    result: list[T] = []
    send, receive = anyio.create_memory_object_stream[CallProgress](math.inf)

    async def run() -> None:
        with send:
            result.append(await work(send.send_nowait))

    async def forward() -> None:
        with receive:
            async for progress in receive:
                await report(progress)

    await run_all([run, forward])
    return result[0]
