"""Ctrl-C, SIGTERM, and a terminal that is closed: what runs is cancelled, and the command says how to go on."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from typing import TypeVar

import anyio
from anyio.abc import TaskStatus

C = TypeVar("C")
T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818  # no error: the user's wish
    """The user, or the system, wants the command to end; the message says in which state things are."""


async def interruptible(
    context: AbstractAsyncContextManager[C], work: Callable[[C], Awaitable[T]], state: Callable[[], str]
) -> T:
    """Do some work in a context; at SIGINT, SIGTERM or SIGHUP cancel it, and leave the context in peace.

    Args:
        context: What the work needs.
        work: What to do.
        state: Says in which state things are, once the work was interrupted.

    Raises:
        Interrupted: It was.
    """
    interrupted = False
    result: list[T] = []
    scope = anyio.CancelScope()

    async def listen(*, task_status: TaskStatus[None]) -> None:
        nonlocal interrupted
        with ExitStack() as stack:
            signals: AsyncIterator[signal.Signals] | None = None
            with suppress(NotImplementedError):  # on Windows, where Ctrl-C cancels the main task
                signals = stack.enter_context(anyio.open_signal_receiver(*_signals()))
            task_status.started()
            if signals is not None:
                async for _ in signals:
                    interrupted = True
                    scope.cancel()

    async with anyio.create_task_group() as tasks:
        await tasks.start(listen)
        async with context as entered:
            with scope:
                result.append(await work(entered))
        tasks.cancel_scope.cancel()
    if not result:
        said = state() if interrupted else ""
        raise Interrupted(f"interrupted; {said}" if said else "interrupted")
    return result[0]


def _signals() -> list[signal.Signals]:
    """Return the signals that end a command; one that it was started to ignore, as nohup does, stays ignored."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    known = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    return [each for each in known if signal.getsignal(each) is not signal.SIG_IGN]
