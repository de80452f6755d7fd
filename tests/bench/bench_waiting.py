"""Waiting in virtual time: the requests for a thousand jobs, and the memory and CPU of ten thousand waiters."""

import gc
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from statistics import median
from typing import Any

import anyio
import anyio.lowlevel
import httpx
from fake_clock import FakeClock
from fake_service import FakeJob, FakeService

from convertrilo import AsyncClient

from .harness import Bench, micro

_JOBS = 1000
_SECONDS = 60
_WAITERS = 10_000
_ROUNDS = 3

Wait = Callable[[AsyncClient, FakeClock, str], Coroutine[Any, Any, None]]


class _Timed(FakeService):
    """Measures the CPU of the service, to subtract it from the total."""

    cpu = 0.0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        started = time.process_time()
        try:
            return await super().handle_async_request(request)
        finally:
            self.cpu += time.process_time() - started


async def _nothing() -> None:
    """Answer without a switch of tasks, so that no other task's CPU counts as the service's."""


async def _ours(client: AsyncClient, _: FakeClock, job_id: str) -> None:
    await client.wait_for_job(job_id)


async def _every_five_seconds(client: AsyncClient, clock: FakeClock, job_id: str) -> None:
    """Wait like the TypeScript SDK's helper."""
    while (await client.job_status(job_id)).status != "success":
        await clock.sleep(5)


async def _sleep(_: AsyncClient, clock: FakeClock, __: str) -> None:
    await clock.sleep(_SECONDS)


async def _wait(wait: Wait, jobs: dict[str, FakeJob], *, traced: bool = False) -> tuple[int, float, int]:
    """Wait for each job in a task of its own; return the requests, the CPU, and the memory in bytes while all wait."""
    clock = FakeClock(sleepers="wait")
    service = _Timed(clock, jobs)
    service.answering = _nothing
    memory = 0
    gc.collect()
    if traced:
        tracemalloc.start()
    try:
        async with (
            AsyncClient("a-key", base_url="https://api.example.com", transport=service, clock=clock) as client,
            anyio.create_task_group() as ticking,
        ):
            ticking.start_soon(clock.run)
            before, started = tracemalloc.get_traced_memory()[0], time.process_time()
            async with anyio.create_task_group() as tasks:
                for job_id in jobs:
                    tasks.start_soon(wait, client, clock, job_id)
                await clock.sleep(_SECONDS / 2)
                if traced:
                    gc.collect()
                    memory = tracemalloc.get_traced_memory()[0] - before
            cpu = time.process_time() - started - service.cpu
            ticking.cancel_scope.cancel()
    finally:
        tracemalloc.stop()
    return len(service.asked), cpu, memory


async def run(bench: Bench) -> None:
    """Print the requests for a thousand jobs, and the memory and CPU of ten thousand waiters."""
    page, scale = bench.page, bench.scale
    count = scale.count(_JOBS)
    jobs = {f"j-{number}": FakeJob((number + 1) * _SECONDS / count) for number in range(count)}
    page.table(f"waiting: {count} jobs that finish over {_SECONDS} virtual s", ["", "requests", "fewer, times"])
    each, _, _ = await _wait(_every_five_seconds, jobs)
    page.row("one a job every 5 s (TypeScript)", f"{each:,}", "")
    ours = [(await _wait(_ours, jobs))[0] for _ in range(scale.rounds(_ROUNDS))]
    fewer = [each / requests for requests in ours]
    page.row("wait_for_job", f"{median(ours):,.0f}", page.against("requests", fewer, at_least=50))

    count = scale.count(_WAITERS)
    jobs = {f"j-{number}": FakeJob(_SECONDS) for number in range(count)}
    page.table(
        f"waiters: {count} tasks, {_SECONDS} virtual s",
        ["", "KiB a task", "CPU us a task", "requests"],
        "CPU without the service's; the tasks' own memory and switches are in it, as in those that only sleep.",
    )
    for name, wait in {"asleep": _sleep, "wait_for_job": _ours}.items():
        _, _, memory = await _wait(wait, jobs, traced=True)
        rounds = [await _wait(wait, jobs) for _ in range(scale.rounds(_ROUNDS))]
        cpu = median(cpu for _, cpu, _ in rounds) / count
        page.row(name, f"{memory / count / 1024:.1f}", micro(cpu), f"{median(asked for asked, _, _ in rounds):,.0f}")
