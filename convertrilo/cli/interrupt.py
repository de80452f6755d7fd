"""Ctrl-C and SIGTERM: what runs is cancelled, and what it leaves behind is put in order."""

import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import anyio
from anyio.abc import TaskStatus

C = TypeVar("C")
T = TypeVar("T")

_SECONDS_TO_TIDY_UP = 10.0


class Interrupted(Exception):  # noqa: N818  # no error: the user's wish
    """The user, or the system, wants the command to end; the message says in which state things are."""


async def interruptible(
    context: AbstractAsyncContextManager[C],
    work: Callable[[C], Awaitable[T]],
    tidy_up: Callable[[C], Awaitable[str]],
) -> T:
    """Do some work in a context; at SIGINT or SIGTERM cancel it, tidy up, and leave the context in peace.

    Args:
        context: What work and tidying up need.
        work: What to do.
        tidy_up: What to do if the work was interrupted, in ten seconds at most; returns the state that things are in.

    Raises:
        Interrupted: It was.
    """
    interrupted = False
    state = ""
    result: list[T] = []
    scope = anyio.CancelScope()

    async def listen(*, task_status: TaskStatus[None]) -> None:
        nonlocal interrupted
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                interrupted = True
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        await tasks.start(listen)
        async with context as entered:
            with scope:
                result.append(await work(entered))
            if interrupted:
                with anyio.move_on_after(_SECONDS_TO_TIDY_UP):
                    state = await tidy_up(entered)
        tasks.cancel_scope.cancel()
    if interrupted:
        raise Interrupted(f"interrupted; {state}" if state else "interrupted")
    return result[0]
