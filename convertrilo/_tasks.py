"""Run several tasks as one: they end together, and the first error is raised as it is, without an exception group."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import anyio

TaskFunction = Callable[[], Awaitable[object]]


async def run_all(steps: Iterable[TaskFunction]) -> None:
    """Run tasks to their ends; the first error cancels the others and is raised."""
    async with running_all() as start:
        for step in steps:
            start(step)


@asynccontextmanager
async def running_all() -> AsyncGenerator[Callable[[TaskFunction], None]]:
    """Yield a function that starts a task, also from within a task; at the end, wait for all tasks, as `run_all` does.

    The block should only start tasks: an error of the block itself is wrapped in an exception group.
    """
    failures: list[Exception] = []

    async def run(step: TaskFunction) -> None:
        try:
            await step()
        except Exception as error:  # noqa: BLE001  # raised below, outside of the group
            failures.append(error)
            group.cancel_scope.cancel()

    def start(step: TaskFunction) -> None:
        group.start_soon(run, step)

    async with anyio.create_task_group() as group:
        yield start
    if failures:
        raise failures[0]
