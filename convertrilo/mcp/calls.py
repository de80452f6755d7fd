"""What the call of a tool needs: its progress passed on, and whether what it begins was begun before."""

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
Progress = tuple[float, float | None, str]
"""How far a call is, of how much, if that is known, and in words."""
Tell = Callable[[Progress], Awaitable[None]]

_begun: ContextVar[list[Entry] | None] = ContextVar("_begun", default=None)


class WatchedJournal(Journal):
    """A journal that tells the call of a tool what it begins, and whether that was begun before."""

    async def begin(self, **operation: Any) -> Entry:
        """See `Journal.begin`."""
        entry = await super().begin(**operation)
        begun = _begun.get()
        if begun is not None:
            begun.append(entry)
        return entry


@contextmanager
def begun_here() -> Generator[list[Entry]]:
    """Yield what is begun in watched journals by this block and its tasks; the list grows as it goes on."""
    begun: list[Entry] = []
    token = _begun.set(begun)
    try:
        yield begun
    finally:
        _begun.reset(token)


async def passing_on(tell: Tell, work: Callable[[Callable[[Progress], object]], Awaitable[T]]) -> T:
    """Do some work whose callback cannot be awaited, and pass on what it says."""
    result: list[T] = []
    news, heard = anyio.create_memory_object_stream[Progress](math.inf)

    async def do() -> None:
        with news:
            result.append(await work(news.send_nowait))

    async def pass_on() -> None:
        with heard:
            async for each in heard:
                await tell(each)

    await run_all([do, pass_on])
    return result[0]
