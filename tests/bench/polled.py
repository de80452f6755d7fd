"""A service that is asked for statuses, in virtual time: what the tests of waiting and its benchmark share."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import httpx

START = 1_900_000_000.0


class Clock:
    """Virtual time, for the client and the sandbox; it jumps on when everybody sleeps."""

    def __init__(self) -> None:
        self.now = START
        self.sleepers: dict[anyio.Event, float] = {}
        self.wanted = anyio.Event()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Sleep until everybody sleeps, and it is time; `sleep(0)` lets the others come to rest."""
        woken = anyio.Event()
        self.sleepers[woken] = self.now + max(0.0, seconds)
        self.wanted.set()
        try:
            await woken.wait()
        finally:
            del self.sleepers[woken]

    async def run(self) -> None:
        while True:
            await everybody_waits()
            nearest = min(self.sleepers.values(), default=math.inf)
            if nearest == math.inf:
                self.wanted = anyio.Event()
                await self.wanted.wait()
                continue
            self.now = max(self.now, nearest)
            for woken, due in self.sleepers.items():
                if due <= self.now:
                    woken.set()


async def everybody_waits() -> None:
    """Wait until no other task can run. anyio's own function takes a tenth of a second each time on asyncio."""
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:  # it is trio's
        await anyio.wait_all_tasks_blocked()
        return
    ready = loop._ready  # what can run
    await anyio.lowlevel.checkpoint()
    while ready:
        await anyio.lowlevel.checkpoint()


@attrs.define
class Job:
    """A job of the service: what it becomes, and after how many seconds."""

    seconds: float = 10.0
    ends_as: str = "success"
    on_demand: bool = False
    shows_percent: bool = False


class Service(httpx.AsyncBaseTransport):
    """Answers `jobStatus`, `bulkStatus` and `onDemandStatus`, and remembers what it was asked, and when."""

    def __init__(self, clock: Clock, jobs: dict[str, Job]) -> None:
        self.clock = clock
        self.jobs = jobs
        self.began = clock.time()
        self.asked: list[tuple[float, str, list[str]]] = []
        self.max_ids = 1000
        self.bulk_status = 200
        self.bad_ids: set[str] = set()
        self.bulk_knows_on_demand = True
        self.failures: list[Exception | httpx.Response] = []
        self.headers: dict[str, str] = {}
        self.answering: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint

    @property
    def kinds(self) -> Counter[str]:
        return Counter(kind for _, kind, _ in self.asked)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        *_, kind, last = request.url.path.split("/")
        ids = request.url.params["ids"].split(",") if kind == "bulk" else [last if kind == "status" else kind]
        what = {"bulk": "bulk", "status": "on-demand"}.get(kind, "single")
        self.asked.append((self.clock.time() - self.began, what, ids))
        await self.answering()
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        if what == "bulk":
            return self.bulk(ids)
        if ids[0] not in self.jobs or self.jobs[ids[0]].on_demand is not (what == "on-demand"):
            return refusal(404, "not_found")
        return httpx.Response(200, json=self.status(ids[0]), headers=self.headers)

    def bulk(self, ids: list[str]) -> httpx.Response:
        if self.bulk_status != 200:
            return refusal(self.bulk_status, "no_bulk")
        if len(ids) > self.max_ids or self.bad_ids & set(ids):
            return refusal(400, "invalid_request")
        known = [each for each in ids if each in self.jobs]
        known = [each for each in known if self.bulk_knows_on_demand or not self.jobs[each].on_demand]
        found = [
            {"id": each, "pct": status.get("progress"), **status} for each in known if (status := self.status(each))
        ]
        answer = {"jobs": found, "missing": [each for each in ids if each not in known]}
        return httpx.Response(200, json=answer, headers=self.headers)

    def status(self, job_id: str) -> dict[str, Any]:
        job = self.jobs[job_id]
        share = min(1.0, (self.clock.time() - self.began) / job.seconds)
        name, percent = ("jobId", "progress") if job.on_demand else ("id", "pct")
        wire: dict[str, Any] = {name: job_id, "status": job.ends_as if share == 1 else "running"}
        if job.shows_percent:
            wire[percent] = 100 * share
        if wire["status"] == "failed":
            wire["failureMessage"] = "no moov atom"
        return wire


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": "no"}, headers=headers)
