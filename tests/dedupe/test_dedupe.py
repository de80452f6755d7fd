"""Dedupe stores: claims, leases, and a file in which confirmed changes survive."""

import asyncio
import sqlite3
import stat
from pathlib import Path

import anyio
import pytest
from fake_clock import FakeClock
from loopback import until
from webhook_help import NOW

from convertrilo import MemoryDedupe, SQLiteDedupe
from convertrilo.dedupe.memory import LEASE, DedupeStore, once
from convertrilo.errors import ConfigurationError

KEY = ("j-1", "job.completed")
OTHER = ("j-1", "job.failed")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW, sleepers="wait")


@pytest.fixture(params=["memory", "SQLite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> DedupeStore:
    return MemoryDedupe() if request.param == "memory" else SQLiteDedupe(tmp_path / "d.db", clock=clock)


async def test_an_event_has_one_owner_until_it_is_handled(store: DedupeStore) -> None:
    async with store:
        assert await store.claim(KEY) == "mine"
        assert await store.claim(KEY) == "busy"
        assert await store.claim(OTHER) == "mine"
        await store.renew(KEY)
        await store.finish(KEY)
        assert await store.claim(KEY) == "done"
        assert await store.claim(OTHER) == "busy"
        await store.renew(KEY)
        assert await store.claim(KEY) == "done"


async def test_what_was_released_is_free(store: DedupeStore) -> None:
    async with store:
        await store.claim(KEY)
        await store.release(KEY)
        assert await store.claim(KEY) == "mine"


async def test_jobs_of_which_nothing_was_handled_are_unseen(store: DedupeStore) -> None:
    async with store:
        assert await store.unseen([], ["job.completed"]) == []
        for number in range(3):
            await store.claim((f"j-{number}", "job.completed"))
        await store.finish(("j-1", "job.completed"))
        await store.finish(("j-2", "job.queued"))
        jobs = [f"j-{number}" for number in range(1_200)]
        assert await store.unseen(jobs, ["job.completed", "job.failed"]) == [job for job in jobs if job != "j-1"]


@pytest.mark.parametrize("text", ["", "é", "a\0b", "\ud800", "x" * 10_000, "'; DROP TABLE events; --"])
async def test_a_job_id_can_be_any_text(text: str, store: DedupeStore) -> None:
    async with store:
        assert await store.claim((text, text)) == "mine"
        await store.finish((text, text))
        assert await store.claim((text, text)) == "done"
        assert await store.unseen([text, "x"], [text]) == ["x"]


async def test_whoever_comes_second_waits_for_the_first(store: DedupeStore, clock: FakeClock) -> None:
    gate, works, results = anyio.Event(), 0, []

    async def work() -> None:
        nonlocal works
        works += 1
        await gate.wait()

    async def do() -> None:
        results.append(await once(store, KEY, work, clock))

    async with store, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(do)
        await until(lambda: works == 1)
        await clock.until_asleep(0.25)
        gate.set()
        await until(lambda: bool(results))
        while len(results) < 3:
            clock.advance(0.25)
            await anyio.lowlevel.checkpoint()
    assert results == [True, False, False]
    assert works == 1


async def test_whoever_comes_second_takes_over_when_the_first_fails(store: DedupeStore, clock: FakeClock) -> None:
    async def fail() -> None:
        raise LookupError("no such video")

    async def work() -> None:
        return None

    async with store:
        with pytest.raises(LookupError, match="no such video"):
            await once(store, KEY, fail, clock)
        assert await once(store, KEY, work, clock)
        assert not await once(store, KEY, fail, clock)


async def test_work_that_is_cancelled_is_not_done(store: DedupeStore, clock: FakeClock) -> None:
    started = anyio.Event()

    async def work() -> None:
        started.set()
        await anyio.sleep_forever()

    async with store:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(once, store, KEY, work, clock)
            await started.wait()
            tasks.cancel_scope.cancel()
        assert await store.claim(KEY) == "mine"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio has no cancelling from outside
async def test_a_task_that_asyncio_cancels_itself_ends_as_cancelled(store: DedupeStore, clock: FakeClock) -> None:
    started = anyio.Event()

    async def work() -> None:
        started.set()
        await anyio.sleep_forever()

    async with store:
        task = asyncio.create_task(once(store, KEY, work, clock))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.claim(KEY) == "mine"


# ---- memory


async def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    store = MemoryDedupe(size=2)
    for number in range(3):
        assert await store.claim((str(number), "x")) == "mine"
        await store.finish((str(number), "x"))
    assert [await store.claim((str(number), "x")) for number in range(3)] == ["mine", "done", "done"]


# ---- the file


async def test_the_claim_of_a_process_that_died_runs_out(tmp_path: Path, clock: FakeClock) -> None:
    async with (
        SQLiteDedupe(tmp_path / "d.db", clock=clock) as dead,
        SQLiteDedupe(tmp_path / "d.db", clock=clock) as one,
    ):
        assert await dead.claim(KEY) == "mine"
        clock.advance(LEASE / 2)
        assert await one.claim(KEY) == "busy"
        await dead.renew(KEY)
        clock.advance(LEASE / 2)
        assert await one.claim(KEY) == "busy"
        clock.advance(LEASE / 2)
        assert await one.claim(KEY) == "mine"
        await dead.release(KEY)  # the process was alive after all; another one holds the claim now
        await dead.renew(KEY)
        assert await dead.claim(KEY) == "busy"
        await one.finish(KEY)
        assert await dead.claim(KEY) == "done"


async def test_what_was_handled_long_ago_is_forgotten(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convertrilo.dedupe.sqlite._PRUNE_EVERY", 3)
    for number in range(2):  # in one long run, and after a restart
        async with SQLiteDedupe(tmp_path / f"{number}.db", remember=100, clock=clock) as store:
            await store.finish(KEY)
            clock.advance(50)
            await store.finish(OTHER)
            clock.advance(51)
            if number:
                await store.finish(("j-2", "job.created"))
                await store.finish(("j-3", "job.created"))
        async with SQLiteDedupe(tmp_path / f"{number}.db", remember=100, clock=clock) as store:
            if not number:
                await store.finish(("j-2", "job.created"))
            assert await store.claim(KEY) == "mine"
            assert await store.claim(OTHER) == "done"


async def test_the_queue_gives_what_is_due_for_the_longest(tmp_path: Path, clock: FakeClock) -> None:
    async with SQLiteDedupe(tmp_path / "d.db", clock=clock) as store:
        assert await store.take() == (None, None)
        await store.put(KEY, b"one")
        await store.put(KEY, b"another")
        first, _ = await store.take()
        assert first is not None
        assert (first.key, first.payload, first.attempts) == (KEY, b"one", 1)
        assert await store.take() == (None, clock.time() + LEASE)
        await store.postpone(KEY, 300)
        assert await store.take() == (None, clock.time() + 300)
        clock.advance(300)
        again, _ = await store.take()
        assert again is not None
        assert again.attempts == 2
        await store.release(KEY)  # the attempt does not count
        again, _ = await store.take()
        assert again is not None
        assert again.attempts == 2
        await store.finish(KEY)
        await store.put(KEY, b"one")
        assert await store.take() == (None, None)
        await store.drop(KEY)
        assert await store.claim(KEY) == "mine"


async def test_what_is_queued_while_it_is_handled_comes_up_if_that_fails(tmp_path: Path, clock: FakeClock) -> None:
    for works in (True, False):
        key = (f"j-{works}", "job.completed")
        async with SQLiteDedupe(tmp_path / "d.db", clock=clock) as store:
            await store.claim(key)
            await store.put(key, b"one")
            assert (await store.take())[0] is None
            assert await store.unseen([key[0]], [key[1]]) == []
            await (store.finish(key) if works else store.release(key))
            queued, _ = await store.take()
            assert (queued is None) is works


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    async with SQLiteDedupe(tmp_path / "d.db"):
        assert stat.S_IMODE((tmp_path / "d.db").stat().st_mode) == 0o600


async def test_a_file_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="another program's database"):
        await SQLiteDedupe(path).__aenter__()
    assert path.read_bytes() == before


@pytest.mark.parametrize("path", ["nowhere/d.db", "."])
async def test_a_file_that_cannot_be_used_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"the dedupe store {tmp_path / path} cannot be used"):
        await SQLiteDedupe(tmp_path / path).__aenter__()


async def test_many_can_enter_a_store_and_the_last_one_closes_it(tmp_path: Path) -> None:
    store = SQLiteDedupe(tmp_path / "d.db")
    async with store:
        async with store:
            await store.finish(KEY)
        assert await store.claim(KEY) == "done"
    with pytest.raises(ConfigurationError, match="not open"):
        await store.claim(KEY)
    async with store:
        assert await store.claim(KEY) == "done"


async def test_many_stores_can_make_one_file_at_once(tmp_path: Path, clock: FakeClock) -> None:
    claims: list[str] = []

    async def claim() -> None:
        async with SQLiteDedupe(tmp_path / "d.db", clock=clock) as store:
            claims.append(await store.claim(KEY))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(claim)
    assert sorted(claims) == ["busy"] * 7 + ["mine"]
