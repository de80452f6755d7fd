"""Several tasks that are one thing: they end together, and the first error is the error of it all."""

from collections.abc import Awaitable, Callable, Iterable

import anyio


async def together(steps: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Run tasks to their ends; the first error cancels the others, and is raised as it is, in no group."""
    failures: list[Exception] = []

    async def run(step: Callable[[], Awaitable[object]]) -> None:
        try:
            await step()
        except Exception as error:  # noqa: BLE001  # raised below, outside of the group
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for step in steps:
            group.start_soon(run, step)
    if failures:
        raise failures[0]
