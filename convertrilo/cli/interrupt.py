"""Ctrl-C, SIGTERM and SIGHUP: cancel the work in progress, and say how to resume it."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from typing import TypeVar

import anyio
from anyio.abc import TaskStatus

C = TypeVar("C")
T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818  # not an error: the user requested it
    """A signal ended the command; the message says what state the work is in and how to resume it."""


async def interruptible(
    context: AbstractAsyncContextManager[C], work: Callable[[C], Awaitable[T]], how_to_resume: Callable[[], str]
) -> T:
    """Run work in a context; SIGINT, SIGTERM or SIGHUP cancels the work, and the context still exits in order.

    Args:
        context: The context manager whose value the work gets.
        work: Called with that value.
        how_to_resume: Says, after an interruption, what state the work is in and how to resume it.

    Raises:
        Interrupted: The work was interrupted.
    """
    interrupted = False
    result: list[T] = []
    scope = anyio.CancelScope()

    async def listen(*, task_status: TaskStatus[None]) -> None:
        nonlocal interrupted
        with ExitStack() as stack:
            signals: AsyncIterator[signal.Signals] | None = None
            with suppress(NotImplementedError):  # Windows, where Ctrl-C cancels the main task
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
        said = how_to_resume() if interrupted else ""
        raise Interrupted(f"interrupted; {said}" if said else "interrupted")
    return result[0]


def _signals() -> list[signal.Signals]:
    """Return the signals that end a command, except those that the parent process told it to ignore, as nohup does."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    known = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    return [each for each in known if signal.getsignal(each) is not signal.SIG_IGN]
