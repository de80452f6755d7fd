"""Time as a parameter: the machine's, and the sandbox's virtual one for everything that takes a clock."""

import math
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from fake_clock import FakeClock
from loopback import until
from support import JOB, Script, ok, problem

from convertrilo import AsyncClient, AttemptEvent, Clock, Journal, RetryPolicy
from convertrilo._clock import SYSTEM_CLOCK
from convertrilo.sandbox import Sandbox, VirtualClock


async def test_a_client_waits_by_the_sandboxs_virtual_clock() -> None:
    clock = VirtualClock()
    script = Script(problem(429, "rate_limit_exceeded", headers={"Retry-After": "30"}), ok({"available": 7}))
    waits: list[AttemptEvent] = []
    available: list[float | None] = []

    async def ask(client: AsyncClient) -> None:
        available.append((await client.get_balance()).available)

    async with (
        AsyncClient("k", base_url="https://api.test", transport=script, clock=clock, on_event=waits.append) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(ask, client)
        await until(lambda: bool(waits))
        clock.advance(29)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert (available, script.attempts) == ([], 1)
        clock.advance(1)
    assert available == [7]


async def test_sandbox_client_and_journal_share_a_virtual_clock(tmp_path: Path) -> None:
    clock = VirtualClock()
    ended: list[float] = []

    async def encode(client: AsyncClient) -> None:
        job = await client.create_job({**JOB, "sourceUrl": "https://videos.test/in.mp4", "confirm": True})
        await client.wait_for_job(job.job_id, timeout=1e9)
        ended.append(clock.time() - VirtualClock().time())

    def has_ended() -> bool:
        clock.advance(0.125)
        return bool(ended)

    async with (
        Sandbox(clock=clock, encode_seconds=60) as sandbox,
        Journal(tmp_path / "j.db", clock=clock) as journal,
        sandbox.client(clock=clock, journal=journal, retry=RetryPolicy(deadline=1e9)) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(encode, client)
        await until(has_ended)
        [entry] = [each async for each in journal.answered()]
    assert ended[0] >= 60
    assert VirtualClock().time() <= entry.first_sent_at.timestamp() <= clock.time()


@pytest.mark.parametrize("seconds", [-1.0, 0.0])
async def test_what_is_past_needs_no_waiting(seconds: float) -> None:
    with anyio.fail_after(60):
        await SYSTEM_CLOCK.sleep(seconds)
        await VirtualClock().sleep(seconds)


@pytest.mark.parametrize("clock", [SYSTEM_CLOCK, VirtualClock()], ids=["system", "virtual"])
async def test_one_can_sleep_for_ever(clock: Clock) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.sleep, math.inf)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert tasks.cancel_scope.cancelled_caught


def test_all_clocks_are_of_one_kind() -> None:
    clocks: list[Clock] = [SYSTEM_CLOCK, VirtualClock(), FakeClock()]
    assert all(clock.monotonic() >= 0 and clock.time() > 0 for clock in clocks)
