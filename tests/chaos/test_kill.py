"""A script killed with -9 at seeded random moments and run again to its end: every job once, journal or not."""

import os
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import anyio
import anyio.abc
import pytest
import workload
from anyio.streams.text import TextReceiveStream
from proxy import Plan, Proxy, Request, proxy, reset, stall
from sandbox_process import Server, differences, ledger, serving
from workload import WISHES, Answer

from convertrilo import Journal

SEED = 3
KILLS_IN_A_ROW = (3, 4, 5, 6, 7)
"""For each script; 25 on each backend, so 50 with a journal and 50 without."""
AT_ONCE = 2
LINGER = 0.005
"""Seconds that a script may live on after an answer: enough to write the journal, and to send more."""

PATIENCE = 5.0
"""Seconds after which a script that should be dead is killed all the same."""

UNANSWERED = (
    Plan(sent=0, answered=None),
    Plan(sent=0.5, answered=None),
    Plan(answered=None),
    Plan(answered=0),
    Plan(answered=0.5),
)
"""How far a request and its answer may have come when the script is killed."""
ANSWERED = Plan()


@dataclass
class Killer:
    """Lets one request come as far as its plan says, and kills the script that sent it."""

    victim: anyio.abc.Process | None = None
    at: int | None = None
    """The number of that request; None lets the script live."""
    plan: Plan = ANSWERED
    linger: float = 0.0

    def __call__(self, request: Request) -> Plan:
        if self.at is None or request.number < self.at:
            return Plan()
        if request.number == self.at:
            return replace(self.plan, end=self.kill)
        return Plan(sent=0, answered=None, end=self.wait)  # or the script could end before it is killed

    async def wait(self, connections: Proxy, client: socket.socket) -> None:
        """Say nothing until the script is killed; do so if its connection broke before it could be."""
        victim = self.victim
        with anyio.move_on_after(PATIENCE) as waiting:
            await stall(connections, client)
        if waiting.cancelled_caught and victim is not None and victim.returncode is None:
            victim.kill()

    async def kill(self, connections: Proxy, client: socket.socket) -> None:
        await anyio.sleep(self.linger)
        assert self.victim is not None
        self.victim.kill()
        await reset(connections, client)


@dataclass
class Script:
    """The script, which may be run any number of times, and what it has printed so far."""

    name: str
    backend: str
    server: Server
    connections: Proxy
    killer: Killer
    journal: Path | None
    printed: dict[str, set[Answer]] = field(default_factory=lambda: defaultdict(set))

    async def run(self) -> int:
        """Run it until it ends or is killed, and return what `wait` says of it."""
        command = [sys.executable, workload.__file__, self.backend, self.connections.url, self.name]
        if self.journal is not None:
            command.append(str(self.journal))
        environment = {**os.environ, "CONVERTRILO_API_KEY": self.server.api_key}
        async with await anyio.open_process(command, stderr=None, env=environment) as process:
            self.killer.victim = process
            assert process.stdout is not None
            output = "".join([text async for text in TextReceiveStream(process.stdout)])
            code = await process.wait()
        for line in output.splitlines():
            name, *ids = line.split()
            self.printed[name].add(tuple(ids))
        return code

    async def run_to_the_end(self) -> None:
        self.killer.at = None
        assert await self.run() == 0

    async def run_and_kill(self, random: Random) -> None:
        """Kill it at a random moment, as soon as it has sent a random number of requests."""
        left = WISHES - len(await self.answered())
        number = random.randint(1, left)
        self.killer.at = len(self.connections.requests) + number
        self.killer.linger = 0.0
        self.killer.plan = random.choice(UNANSWERED)
        if number < left and random.random() < 0.5:
            self.killer.plan = ANSWERED
            self.killer.linger = random.uniform(0, LINGER)
        assert await self.run() == -signal.SIGKILL

    async def answered(self) -> set[str]:
        """Return the keys of which the journal has the answer."""
        if self.journal is None:
            return set()
        async with Journal(self.journal) as journal:
            return {entry.key async for entry in journal.answered()}


@asynccontextmanager
async def script(
    name: str, backend: str, server: Server, journal: Path | None = None, *, strip_keys: bool = False
) -> AsyncGenerator[Script]:
    killer = Killer()
    async with proxy(server.port, killer, strip_keys=strip_keys) as connections:
        yield Script(name, backend, server, connections, killer, journal)


@pytest.mark.parametrize("journaled", [False, True], ids=["without_journal", "with_journal"])
async def test_a_script_killed_and_run_again_makes_every_job_once(
    tmp_path: Path, anyio_backend: str, journaled: bool
) -> None:
    printed: dict[str, set[Answer]] = {}
    cores = anyio.Semaphore(AT_ONCE)

    async def torment(number: int, kills: int) -> None:
        journal = tmp_path / f"{number}.db" if journaled else None
        async with cores, script(f"script-{number}", anyio_backend, server, journal) as victim:
            for kill in range(kills):
                answered, seen = await victim.answered(), len(victim.connections.requests)
                await victim.run_and_kill(Random(f"{SEED}/{journaled}/{number}/{kill}"))
                assert answered.isdisjoint(request.key for request in victim.connections.requests[seen:])
            answered, seen = await victim.answered(), len(victim.connections.requests)
            await victim.run_to_the_end()
            assert answered.isdisjoint(request.key for request in victim.connections.requests[seen:])
            printed.update(victim.printed)

    async with serving(tmp_path / "state") as server, anyio.create_task_group() as tasks:
        for number, kills in enumerate(KILLS_IN_A_ROW):
            tasks.start_soon(torment, number, kills)
    assert len(printed) == WISHES * len(KILLS_IN_A_ROW)
    assert differences(printed, await ledger(tmp_path / "state")) == {}


async def test_with_a_journal_a_script_that_came_to_its_end_sends_nothing_when_it_is_run_again(
    tmp_path: Path, anyio_backend: str
) -> None:
    async with (
        serving(tmp_path / "state") as server,
        script("script", anyio_backend, server, tmp_path / "journal.db") as finished,
    ):
        await finished.run_to_the_end()
        await finished.run_to_the_end()
    assert len(finished.connections.requests) == len(finished.printed) == WISHES


async def test_without_keys_a_script_killed_and_run_again_makes_jobs_twice(tmp_path: Path, anyio_backend: str) -> None:
    async with (
        serving(tmp_path / "state") as server,
        script("script", anyio_backend, server, strip_keys=True) as victim,
    ):
        victim.killer.at = 3
        victim.killer.plan = Plan(answered=0)
        assert await victim.run() == -signal.SIGKILL
        victim.printed.clear()
        await victim.run_to_the_end()
    twice = differences(victim.printed, await ledger(tmp_path / "state"))
    assert twice.keys() == {f"script/{number}" for number in range(3)}
