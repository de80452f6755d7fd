"""Scripts killed at seeded random moments and run again: every job is created once, with and without a journal."""

import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import anyio
import anyio.abc
import pytest
import workload
from killer import ANSWERED, LINGER, UNANSWERED, KillableScript, Killer
from proxy import Plan, Proxy, proxy
from sandbox_process import Server, differences, ledger, serving
from workload import OPERATIONS, Answer

from convertrilo import Journal

SEED = 3
KILLS_IN_A_ROW = (3, 4, 5, 6, 7)
"""For each script. These are 25 kills on each backend, so 50 with a journal and 50 without."""
AT_ONCE = 2


@dataclass
class WorkloadScript(KillableScript):
    """The script that carries out logical operations of every kind."""

    connections: Proxy
    journal: Path | None

    async def run_and_kill(self, random: Random) -> None:
        """Run the script and kill it at a random moment after a random number of requests."""
        left = OPERATIONS - len(await self.answered())
        number = random.randint(1, left)
        self.killer.at = len(self.connections.requests) + number
        self.killer.linger = 0.0
        self.killer.plan = random.choice(UNANSWERED)
        if number < left and random.random() < 0.5:
            self.killer.plan = ANSWERED
            self.killer.linger = random.uniform(0, LINGER)
        assert await self.run() == -signal.SIGKILL

    async def answered(self) -> set[str]:
        """Return the keys whose answers are in the journal."""
        if self.journal is None:
            return set()
        async with Journal(self.journal) as journal:
            return {entry.key async for entry in journal.answered()}


@asynccontextmanager
async def script(
    name: str, backend: str, server: Server, journal: Path | None = None, *, strip_keys: bool = False
) -> AsyncGenerator[WorkloadScript]:
    killer = Killer()
    async with proxy(server.port, killer, strip_keys=strip_keys) as connections:
        arguments = [connections.url, name, *([] if journal is None else [str(journal)])]
        yield WorkloadScript(workload.__file__, backend, arguments, server.api_key, killer, connections, journal)


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
    assert len(printed) == OPERATIONS * len(KILLS_IN_A_ROW)
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
    assert len(finished.connections.requests) == len(finished.printed) == OPERATIONS


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
