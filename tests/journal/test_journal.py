"""The journal: what it confirmed survives any crash, and what it cannot record is not sent."""

import asyncio
import contextlib
import json
import os
import pickle
import random
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import psutil
import pytest
from fake_clock import FakeClock

from convertrilo._store import sqlite as _sqlite
from convertrilo.errors import (
    ConfigurationError,
    ConvertriloError,
    IdempotencyConflictError,
    JournalError,
    OutcomeUnknownError,
)
from convertrilo.journal import Entry, Journal

DAY = 86400.0
BACKENDS = ("asyncio", "trio")


async def begin(
    journal: Journal, key: str, body: bytes = b"{}", *, operation: str = "createJob", name: str | None = None
) -> Entry:
    return await journal.begin(
        service="https://api.test", operation=operation, key=key, body=body, identity="call", name=name
    )


async def begin_in(path: Path, key: str = "k") -> Entry:
    async with Journal(path) as journal:
        return await begin(journal, key)


async def together(*calls: Callable[[], Awaitable[object]]) -> list[object]:
    """Run all calls at once; return what each of them returned or raised."""
    outcomes: list[object] = [None] * len(calls)

    async def one(index: int, call: Callable[[], Awaitable[object]]) -> None:
        try:
            outcomes[index] = await call()
        except ConvertriloError as error:
            outcomes[index] = error

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for index, call in enumerate(calls):
                group.start_soon(one, index, call)
    return outcomes


def statements(journal: Journal) -> list[str]:
    """Return a list that receives every statement the journal executes from now on."""
    seen: list[str] = []
    connection(journal).set_trace_callback(seen.append)
    return seen


def connection(journal: Journal) -> sqlite3.Connection:
    found = journal._store._connection
    assert found is not None
    return found


@contextlib.contextmanager
def busy(path: Path) -> Iterator[Callable[[], object]]:
    """Lock the journal as another process would, and yield a function that unlocks it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield partial(other.execute, "ROLLBACK")


async def turns() -> None:
    """Let every other task run until it blocks."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def open_files(directory: Path) -> list[str]:
    return [file.path for file in psutil.Process().open_files() if Path(file.path).parent == directory]


def assert_same_after_pickling(error: ConvertriloError) -> None:
    revived = pickle.loads(pickle.dumps(error))
    assert (type(revived), str(revived), vars(revived)) == (type(error), str(error), vars(error))


def run_child(source: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ingest.db"


# What is recorded


async def test_what_was_begun_and_answered_is_there_when_the_file_is_opened_again(path: Path) -> None:
    clock = FakeClock()
    start = clock.now
    async with Journal(path, clock=clock) as journal:
        entry = await journal.begin(
            service="https://api.test",
            operation="createJobsBulk",
            key="k",
            body=b'{"a":1}',
            identity="operation",
            name="ночь 1",
        )
        assert (entry.fresh, entry.state, entry.answer) == (True, "pending", None)
        clock.now += 2.5
        await journal.answer("k", b'{"jobId":"j"}')
    async with Journal(path, clock=clock) as journal:
        entry = await journal.begin(
            service="https://api.test",
            operation="createJobsBulk",
            key="k",
            body=b'{"a":1}',
            identity="operation",
            name="ночь 1",
        )
        assert entry == await journal.get("k")
    assert entry == Entry(
        operation="createJobsBulk",
        key="k",
        identity="operation",
        name="ночь 1",
        body=b'{"a":1}',
        first_sent_at=datetime.fromtimestamp(start, UTC),
        answered_at=datetime.fromtimestamp(start + 2.5, UTC),
        answer=b'{"jobId":"j"}',
        state="answered",
        fresh=False,
    )


async def test_an_operation_begun_again_is_pending_and_not_fresh(path: Path) -> None:
    async with Journal(path) as journal:
        await begin(journal, "k")
        again = await begin(journal, "k")
        assert (again.fresh, again.state) == (False, "pending")


async def test_the_first_answer_stays(path: Path) -> None:
    async with Journal(path) as journal:
        await begin(journal, "k")
        await journal.answer("k", b"first")
        await journal.answer("k", b"second")
        entry = await journal.get("k")
        assert entry is not None
        assert entry.answer == b"first"


async def test_an_answer_to_a_dropped_operation_brings_nothing_back(path: Path) -> None:
    async with Journal(path) as journal:
        await begin(journal, "k")
        assert await journal.drop("k")
        await journal.answer("k", b"late")
        assert await journal.get("k") is None
        assert not await journal.drop("k")
        assert (await begin(journal, "k")).fresh


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        (None, None),
        ("", ""),
        ("видео/日本語 🎬.mp4", "видео/日本語 🎬.mp4"),
        ("nul\0inside", "nul\0inside"),
        ("not utf-8: \udcff.mp4", "not utf-8: \\udcff.mp4"),
    ],
)
async def test_any_file_name_can_name_an_operation(path: Path, name: str | None, stored: str | None) -> None:
    async with Journal(path) as journal:
        await begin(journal, "k", name=name)
        entry = await journal.get("k")
        assert entry is not None
        assert entry.name == stored


async def test_a_bulk_of_ten_megabytes_is_kept_byte_for_byte(path: Path) -> None:
    body, answer = random.Random(1).randbytes(10 << 20), random.Random(2).randbytes(10 << 20)
    async with Journal(path) as journal:
        assert (await begin(journal, "k", body)).body == body
        await journal.answer("k", answer)
        entry = await begin(journal, "k", body)
        assert (entry.body, entry.answer) == (body, answer)


async def test_repr_shows_sizes_and_no_contents(path: Path) -> None:
    async with Journal(path) as journal:
        await begin(journal, "k", b'{"password":1}')
        await journal.answer("k", b"https://bucket/?X-Amz-Signature=1")
        shown = repr(await journal.get("k"))
    assert "<14 bytes>" in shown
    assert "<33 bytes>" in shown
    assert "password" not in shown
    assert "Amz" not in shown


async def test_the_files_are_for_their_owner_only(path: Path) -> None:
    umask = os.umask(0)
    try:
        async with Journal(path) as journal:
            await begin(journal, "k")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(umask)
    assert modes == {"ingest.db": 0o600, "ingest.db-wal": 0o600, "ingest.db-shm": 0o600}


async def test_a_commit_is_synced_to_the_disk(path: Path) -> None:
    async with Journal(path) as journal:
        pragmas = [
            connection(journal).execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]
        assert pragmas == ["wal", 2]


# Conflicts, the replay window, forgetting


@pytest.mark.parametrize(
    ("operation", "body", "told"),
    [("createJob", b'{"b":2}', "another body"), ("onDemandEncode", b'{"a":1}', "another operation, createJob")],
)
async def test_a_key_used_for_something_else_is_a_conflict(path: Path, operation: str, body: bytes, told: str) -> None:
    async with Journal(path) as journal:
        await begin(journal, "k", b'{"a":1}')
        with pytest.raises(IdempotencyConflictError, match=told) as caught:
            await begin(journal, "k", body, operation=operation)
        error = caught.value
        assert (error.status, error.code, error.operation) == (409, "idempotency_conflict", operation)
        assert (error.idempotency_key, error.attempts) == ("k", 0)
        assert "Nothing was sent." in str(error)
        assert_same_after_pickling(error)
        entry = await journal.get("k")
        assert entry is not None
        assert (entry.operation, entry.body, entry.state) == ("createJob", b'{"a":1}', "pending")


async def test_past_the_replay_window_only_a_person_can_decide(path: Path) -> None:
    clock = FakeClock()
    async with Journal(path, replay_window=DAY, clock=clock) as journal:
        for key in ("answered", "dropped", "rescued"):
            await begin(journal, key)
        await journal.answer("answered", b"a")
        clock.now += DAY
        assert (await begin(journal, "dropped")).state == "pending"
        clock.now += 0.001
        with pytest.raises(OutcomeUnknownError, match="Nothing was sent") as caught:
            await begin(journal, "dropped")
        assert (caught.value.operation, caught.value.idempotency_key) == ("createJob", "dropped")
        assert "`drop` its key from the journal" in caught.value.find_out
        assert_same_after_pickling(caught.value)
        assert [entry.key async for entry in journal.unknown()] == ["dropped", "rescued"]
        assert [entry.key async for entry in journal.pending()] == []
        assert (await begin(journal, "answered")).answer == b"a"
        await journal.drop("dropped")
        assert (await begin(journal, "dropped")).fresh
        await journal.answer("rescued", b"r")
        assert (await begin(journal, "rescued")).state == "answered"
        assert [entry.key async for entry in journal.unknown()] == []


@pytest.mark.parametrize(
    ("window", "seconds", "state"),
    [
        pytest.param(DAY, 299, "pending", id="by a little"),
        pytest.param(DAY, 301, "unknown", id="by more than clocks differ"),
        pytest.param(60.0, 59, "pending", id="by less than a short window"),
        pytest.param(60.0, 61, "unknown", id="by more than a short window"),
    ],
)
async def test_a_clock_that_was_set_back_does_not_open_the_window_again(
    path: Path, window: float, seconds: float, state: str
) -> None:
    clock = FakeClock()
    async with Journal(path, replay_window=window, clock=clock) as journal:
        await begin(journal, "k")
        clock.now -= seconds
        lists = {"pending": journal.pending(), "unknown": journal.unknown()}
        assert [entry.key async for entry in lists[state]] == ["k"]
        if state == "pending":
            assert (await begin(journal, "k")).state == "pending"
        else:
            with pytest.raises(OutcomeUnknownError):
                await begin(journal, "k")


@pytest.mark.parametrize("window", [-1.0, float("nan")])
def test_a_replay_window_that_is_no_duration_is_refused(path: Path, window: float) -> None:
    with pytest.raises(ConfigurationError, match="replay_window"):
        Journal(path, replay_window=window)


@pytest.mark.parametrize(
    ("begins", "answers", "forgets", "state"),
    [(1, 0, 1, None), (2, 0, 1, "pending"), (2, 0, 2, None), (1, 1, 1, "answered"), (0, 0, 1, None)],
)
async def test_an_entry_goes_when_every_begin_of_it_was_taken_back(
    path: Path, begins: int, answers: int, forgets: int, state: str | None
) -> None:
    async with Journal(path) as journal:
        for _ in range(begins):
            await begin(journal, "k")
        for _ in range(answers):
            await journal.answer("k", b"a")
        for _ in range(forgets):
            await journal.forget("k")
        entry = await journal.get("k")
        assert (entry and entry.state) == state


async def test_a_refused_rerun_does_not_remove_what_an_earlier_run_may_have_sent(path: Path) -> None:
    await begin_in(path)
    async with Journal(path) as journal:
        assert not (await begin(journal, "k")).fresh
        await journal.forget("k")
        assert await journal.get("k") is not None


# Reading


async def test_lists_are_in_order_over_many_pages_while_entries_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convertrilo.journal.entries._PAGE_ENTRIES", 4)
    async with Journal(path) as journal:
        keys = [f"k{number}" for number in random.Random(1).sample(range(100), 26)]
        for key in keys:
            await begin(journal, key)
        await together(*(partial(journal.answer, key, b"a") for key in keys[:13]))
        assert [entry.key async for entry in journal.answered()] == keys[:13]
        seen: list[str] = []
        async for entry in journal.pending():
            seen.append(entry.key)
            await journal.drop(entry.key)
        assert seen == keys[13:]
        assert [entry.key async for entry in journal.pending()] == []


async def test_reading_a_long_list_takes_constant_memory(path: Path) -> None:
    size, count = 1 << 20, 24
    async with Journal(path) as journal:
        for number in range(count):
            await begin(journal, str(number), bytes(size))
        tracemalloc.start()
        try:
            total = 0
            async for entry in journal.pending():
                total += len(entry.body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert total == size * count
    assert peak < 8 * size


# Many tasks


async def test_a_thousand_creates_at_once_share_their_commits(path: Path) -> None:
    async with Journal(path) as journal:
        seen = statements(journal)

        async def create(number: int) -> bool:
            entry = await begin(journal, f"k{number}", str(number).encode())
            await journal.answer(entry.key, b"a")
            return entry.fresh

        assert await together(*(partial(create, number) for number in range(1000))) == [True] * 1000
        assert seen.count("COMMIT") <= 20
        assert len([entry async for entry in journal.answered()]) == 1000


async def test_of_equal_operations_begun_at_once_one_is_fresh(path: Path) -> None:
    async with Journal(path) as journal:
        entries = await together(*[partial(begin, journal, "k")] * 50)
        assert sorted(isinstance(entry, Entry) and entry.fresh for entry in entries) == [False] * 49 + [True]


async def test_a_conflict_is_its_own_and_those_who_share_its_commit_go_on(path: Path) -> None:
    async with Journal(path) as journal:
        await begin(journal, "k5", b"first")
        outcomes = await together(*(partial(begin, journal, f"k{n}") for n in range(10)))
        assert isinstance(outcomes.pop(5), IdempotencyConflictError)
        assert all(isinstance(entry, Entry) and entry.fresh for entry in outcomes)


async def test_a_key_that_is_not_text_fails_alone(path: Path) -> None:
    async with Journal(path) as journal:
        outcomes = await together(*(partial(begin, journal, key) for key in ("a", "\udcff", "b")))
        assert isinstance(outcomes.pop(1), JournalError)
        assert all(isinstance(entry, Entry) and entry.fresh for entry in outcomes)


async def test_nobody_waits_for_ever_where_no_thread_can_be_had(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*arguments: object, **options: object) -> None:
        raise RuntimeError("can't start new thread")

    async with Journal(path) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(anyio.to_thread, "run_sync", no_thread)
            outcomes = await together(*[partial(begin, journal, "k")] * 10)
        assert all(isinstance(error, JournalError) and "can't start" in str(error) for error in outcomes)
        assert (await begin(journal, "k")).fresh


# Opening and closing


async def test_a_journal_that_is_not_open_says_so(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(JournalError, match="async with"):
        await begin(journal, "k")
    async with journal:
        await begin(journal, "k")
    with pytest.raises(JournalError, match="async with"):
        await journal.answer("k", b"a")
    assert not open_files(path.parent)


async def test_the_last_one_out_closes_the_file(path: Path) -> None:
    journal = Journal(path)

    async def enter_and_leave() -> None:
        async with journal:
            await begin(journal, "k")

    async with journal:
        await together(*[enter_and_leave] * 20)
        async with journal:
            assert open_files(path.parent)
        await journal.answer("k", b"a")
    assert not open_files(path.parent)


async def test_closing_leaves_no_thread_and_no_file_behind(path: Path) -> None:
    process = psutil.Process()
    await begin_in(path)  # this may start the event loop's worker thread
    files, threads = process.num_fds(), threading.active_count()
    for number in range(20):
        await begin_in(path, f"k{number}")
        with pytest.raises(JournalError):
            await begin_in(path.parent)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await begin_in(path, "cancelled")
        assert scope.cancelled_caught
    assert process.num_fds() <= files
    assert threading.active_count() <= threads
    assert not open_files(path.parent)


def test_one_journal_serves_one_event_loop_after_another(path: Path) -> None:
    journal = Journal(path)

    async def use(key: str) -> Entry:
        async with journal:
            return await begin(journal, key)

    for backend in (*BACKENDS, *BACKENDS):
        assert anyio.run(use, backend, backend=backend).key == backend


async def test_a_new_file_that_another_process_is_just_setting_up_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, refusals = _sqlite._prepare, [sqlite3.OperationalError("database is locked") for _ in range(3)]

    def refused_at_first(connection: sqlite3.Connection, schema: _sqlite._Schema) -> None:
        if refusals:
            error = refusals.pop()
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        prepare(connection, schema)

    monkeypatch.setattr(_sqlite, "_prepare", refused_at_first)
    assert (await begin_in(path)).fresh


# Cancellation

# What a task was doing when it was cancelled, and what the journal must hold then: a `begin` leaves nothing, because
# nothing was sent; an answer that was received is kept.
AFTER_CANCELLATION = {"not started": None, "beginning": None, "forgetting": None, "answering": "answered"}


async def live(journal: Journal, number: int, stages: list[str]) -> None:
    stages[number] = "beginning"
    await begin(journal, f"k{number}")
    if number % 3:
        stages[number] = "answering"
        await journal.answer(f"k{number}", b"a")
    else:
        stages[number] = "forgetting"
        await journal.forget(f"k{number}")


async def assert_consistent(journal: Journal, stages: list[str]) -> None:
    for number, stage in enumerate(stages):
        entry = await journal.get(f"k{number}")
        assert (entry and entry.state) == AFTER_CANCELLATION[stage], (number, stage)
    assert [entry async for entry in journal.pending()] == []
    assert (await begin(journal, "after all")).fresh


def some(choice: random.Random) -> int:
    """Return for how many turns of the event loop to wait: mostly a few, at most a task's lifetime."""
    return int(2 ** choice.uniform(0, 8))


@pytest.mark.parametrize("seed", range(4))
async def test_tasks_cancelled_at_any_moment_leave_the_journal_consistent(path: Path, seed: int) -> None:
    choice = random.Random(seed)
    scopes = [anyio.CancelScope() for _ in range(500)]
    stages = ["not started"] * len(scopes)

    async def one(journal: Journal, number: int) -> None:
        with scopes[number]:
            await live(journal, number, stages)

    async def cancel(number: int) -> None:
        for _ in range(some(choice)):
            await anyio.lowlevel.checkpoint()
        scopes[number].cancel()

    with anyio.fail_after(60):
        async with Journal(path) as journal:
            async with anyio.create_task_group() as group:
                for number in range(len(scopes)):
                    group.start_soon(one, journal, number)
                    if choice.random() < 0.7:
                        group.start_soon(cancel, number)
            assert 20 < sum(scope.cancelled_caught for scope in scopes) < 500
            await assert_consistent(journal, stages)


@pytest.mark.parametrize("seed", range(4))
def test_tasks_that_asyncio_cancels_itself_leave_the_journal_consistent(path: Path, seed: int) -> None:
    """`Task.cancel()`, which `asyncio.timeout` and web servers use, ignores anyio's shields."""
    choice = random.Random(seed)
    journal = Journal(path)
    stages = ["not started"] * 500

    async def one(number: int) -> None:
        async with journal:
            await live(journal, number, stages)

    async def cancel(task: asyncio.Task[None]) -> None:
        for _ in range(choice.randrange(3)):  # a second cancellation finds the task waiting for its commit
            for _ in range(some(choice)):
                await asyncio.sleep(0)
            task.cancel()

    async def everything() -> None:
        async with asyncio.timeout(60):
            tasks = [asyncio.create_task(one(number)) for number in range(len(stages))]
            cancellers = [asyncio.create_task(cancel(task)) for task in tasks]
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*cancellers)
            assert 20 < sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) < 500
            assert not [each for each in outcomes if each and not isinstance(each, asyncio.CancelledError)]
            assert not open_files(path.parent)
            async with journal:
                await assert_consistent(journal, stages)

    asyncio.run(everything())
    assert not open_files(path.parent)


@pytest.mark.parametrize("cancelled", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("trio", "scope"), ("asyncio", "task")], ids=lambda value: value
)
def test_whoever_is_cancelled_while_the_disk_is_busy_the_others_go_on(
    path: Path, backend: str, how: str, cancelled: tuple[int, ...]
) -> None:
    """The first `begin` runs in a thread, the second leads the next batch, and the third joins that batch."""
    outcomes: list[Entry | str | None] = [None] * 3
    cancels: list[Callable[[], object]] = []

    async def one(journal: Journal, number: int) -> None:
        with anyio.CancelScope() as scope:
            task = asyncio.current_task() if how == "task" else None
            cancels.append(task.cancel if task else scope.cancel)
            try:
                outcomes[number] = await begin(journal, f"k{number}")
            except anyio.get_cancelled_exc_class():
                outcomes[number] = "cancelled"
                if how == "scope":
                    raise

    async def everything() -> None:
        async with Journal(path) as journal:
            seen = statements(journal)
            with busy(path) as free, anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    group.start_soon(one, journal, 0)
                    while not seen:
                        await anyio.lowlevel.checkpoint()
                    for number in (1, 2):
                        group.start_soon(one, journal, number)
                        await turns()
                    for number in cancelled * 2:
                        cancels[number]()
                        await turns()
                    free()
            for number, outcome in enumerate(outcomes):
                entry = await journal.get(f"k{number}")
                if number in cancelled:
                    assert (outcome, entry) == ("cancelled", None)
                else:
                    assert isinstance(outcome, Entry)
                    assert outcome.fresh
                    assert entry is not None

    anyio.run(everything, backend=backend)


def test_a_conflict_that_asyncio_cancels_takes_nothing_back(path: Path) -> None:
    async def everything() -> None:
        async with Journal(path) as journal:
            await begin(journal, "k")
            task = asyncio.create_task(begin(journal, "k", b"another"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await journal.get("k") is not None

    asyncio.run(everything())


async def test_a_task_that_outlives_the_journal_is_told_and_does_not_open_it_again(path: Path) -> None:
    journal = Journal(path)
    outcomes: list[object] = []

    async def one(key: str) -> None:
        outcomes.extend(await together(partial(begin, journal, key)))

    async with anyio.create_task_group() as group:
        await journal.__aenter__()
        seen = statements(journal)
        with busy(path) as free:
            group.start_soon(one, "running")
            while not seen:
                await anyio.lowlevel.checkpoint()
            group.start_soon(one, "waiting")
            await turns()
            group.start_soon(journal.__aexit__, None, None, None)
            await turns()
            free()
    assert isinstance(outcomes[0], Entry)
    assert isinstance(outcomes[1], JournalError)
    assert "async with" in str(outcomes[1])
    assert not open_files(path.parent)


# Many processes, and their crashes

RACE = """
import json, random, sys
import anyio
from convertrilo.journal import Journal

async def main(path, name):
    fresh = []

    async def one(key):
        entry = await journal.begin(
            service="https://api.test", operation="createJob", key=key, body=b"{}", identity="key", name=name
        )
        if entry.fresh:
            fresh.append(key)
        await journal.answer(key, name.encode())

    async with Journal(path) as journal, anyio.create_task_group() as group:
        keys = [f"k{number}" for number in range(300)]
        random.Random(name).shuffle(keys)
        for start in range(0, 300, 10):
            async with anyio.create_task_group() as few:
                for key in keys[start:start + 10]:
                    few.start_soon(one, key)
    print(json.dumps(fresh))

print("ready", flush=True)
sys.stdin.readline()
anyio.run(main, sys.argv[1], sys.argv[2], backend=sys.argv[2])
"""


async def test_of_two_processes_racing_for_a_key_one_is_fresh(path: Path) -> None:
    children = [run_child(RACE, path, backend) for backend in BACKENDS]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    fresh = [json.loads(child.communicate()[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(fresh[0] + fresh[1]) == sorted(f"k{number}" for number in range(300))
    async with Journal(path) as journal:
        assert len([entry async for entry in journal.answered()]) == 300


LIFE = """
import os, sys
import anyio
from convertrilo.journal import Journal

def report(what, key):
    os.write(1, f"{what} {key}\\n".encode())

async def main(path, run):
    async def life(number):
        for turn in range(1 << 30):
            key = f"{run}-{number}-{turn}"
            await journal.begin(
                service="https://api.test", operation="createJob", key=key, body=key.encode(), identity="key", name=None
            )
            report("begun", key)
            await journal.answer(key, b"answer to " + key.encode())
            report("answered", key)

    async with Journal(path) as journal, anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(life, number)

anyio.run(main, sys.argv[1], sys.argv[2], backend=sys.argv[3])
"""


def killed_run(path: Path, run: int, backend: str) -> list[tuple[str, str]]:
    """Return what a process reported before it was killed with SIGKILL, in the middle of its work."""
    with run_child(LIFE, path, run, backend) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(random.Random(run).randrange(1, 400))]
        child.kill()
        lines += child.stdout.readlines()
    assert child.returncode == -9
    return [(what, key) for what, key in map(str.split, lines)]


async def test_nothing_that_was_confirmed_is_lost_by_a_kill(path: Path, anyio_backend: str) -> None:
    for run in range(8):
        reports = killed_run(path, run, anyio_backend)
        async with Journal(path) as journal:
            for what, key in reports:
                entry = await journal.get(key)
                assert entry is not None, (run, key)
                assert entry.body == key.encode()
                if what == "answered":
                    assert entry.answer == b"answer to " + key.encode()
            left = [entry.key async for entry in journal.pending()]
            for key in left:
                assert not (await begin(journal, key, key.encode())).fresh
                await journal.answer(key, b"answer to " + key.encode())
            assert connection(journal).execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Files and disks that cannot be used


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(20_000))


def text(path: Path) -> None:
    path.write_text("my notes\n" * 100)


def cut(path: Path) -> None:
    anyio.run(begin_in, path)
    os.truncate(path, 5000)


def overwritten(path: Path) -> None:
    anyio.run(begin_in, path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


def newer(path: Path) -> None:
    anyio.run(begin_in, path)
    execute(path, "PRAGMA user_version = 1000")


def foreign_tables(path: Path) -> None:
    execute(path, "CREATE TABLE operations (id INTEGER)")


def foreign_application(path: Path) -> None:
    execute(path, "PRAGMA application_id = 42")


def foreign_version(path: Path) -> None:
    execute(path, "PRAGMA user_version = 1")


def execute(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (garbage, "not a SQLite file"),
        (text, "not a SQLite file"),
        (cut, "damaged"),
        (overwritten, "damaged"),
        (newer, "newer convertrilo.*upgrade"),
        (foreign_tables, "another program"),
        (foreign_application, "another program"),
        (foreign_version, "another program"),
    ],
)
def test_a_file_that_is_no_usable_journal_is_refused_and_left_as_it_is(
    path: Path, make: Callable[[Path], None], told: str, anyio_backend: str
) -> None:
    make(path)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=told) as caught:
        anyio.run(begin_in, path, "another", backend=anyio_backend)
    assert str(path) in str(caught.value)
    assert "Nothing was sent." in str(caught.value)
    assert_same_after_pickling(caught.value)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_journal(path: Path, anyio_backend: str) -> None:
    path.touch()
    assert anyio.run(begin_in, path, backend=anyio_backend).fresh


@pytest.mark.parametrize("name", [":memory:", "file:x?mode=memory"])
async def test_a_path_is_always_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    await begin_in(Path(name))
    assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize(("name", "told"), [("missing/ingest.db", "No such file"), (".", "cannot be opened")])
async def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(JournalError, match=told) as caught:
        await begin_in(tmp_path / name)
    assert str((tmp_path / name).resolve()) in str(caught.value)


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """Yield a directory in which permissions apply: as root, the test runs as another user meanwhile."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as directory:
        if os.geteuid() != 0:
            yield Path(directory)
            return
        os.chown(directory, nobody, -1)
        os.seteuid(nobody)
        try:
            yield Path(directory)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("existing", "file_mode", "directory_mode", "told"),
    [
        (True, 0o400, 0o700, "read-only"),
        (True, 0o000, 0o700, "cannot be opened"),
        (True, 0o600, 0o500, "cannot be"),
        (False, None, 0o500, "Permission denied"),
    ],
)
async def test_what_cannot_be_written_is_an_error_before_anything_is_sent(
    existing: bool, file_mode: int | None, directory_mode: int, told: str
) -> None:
    with unprivileged() as directory:
        path = directory / "ingest.db"
        if existing:
            await begin_in(path, "earlier")
        if file_mode is not None:
            path.chmod(file_mode)
        directory.chmod(directory_mode)
        try:
            with pytest.raises(JournalError, match=told) as caught:
                await begin_in(path)
        finally:
            directory.chmod(0o700)
        assert str(path) in str(caught.value)
        assert "Nothing was sent." in str(caught.value)


async def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(path: Path) -> None:
    async with Journal(path) as journal:
        await begin(journal, "to answer")
        (pages,) = connection(journal).execute("PRAGMA page_count").fetchone()
        connection(journal).execute(f"PRAGMA max_page_count = {pages + 8}")
        bodies = [b"small"] * 5 + [bytes(1 << 20)] + [b"small"] * 5
        seen = statements(journal)
        outcomes = await together(*(partial(begin, journal, f"k{n}", body) for n, body in enumerate(bodies)))
        assert seen.count("BEGIN IMMEDIATE") > seen.count("COMMIT")
        full = outcomes.pop(5)
        assert isinstance(full, JournalError)
        assert str(path) in str(full)
        assert "the disk is full" in str(full)
        assert "Nothing was sent." in str(full)
        assert (full.operation, full.idempotency_key) == ("createJob", "k5")
        assert_same_after_pickling(full)
        assert all(isinstance(entry, Entry) and entry.fresh for entry in outcomes)
        with pytest.raises(JournalError, match="answer is not recorded"):
            await journal.answer("to answer", bytes(1 << 20))
        connection(journal).execute(f"PRAGMA max_page_count = {pages + 1000}")
        assert (await begin(journal, "k5", bytes(1 << 20))).fresh
        entry = await journal.get("to answer")
        assert entry is not None
        assert entry.state == "pending"


LIMITED = """
import resource, sys
import anyio
from convertrilo.errors import JournalError
from convertrilo.journal import Journal

async def main(path):
    async with Journal(path) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        for number in range(1000):
            try:
                key, body = f"k{number}", bytes(3000)
                await journal.begin(
                    service="https://api.test", operation="createJob", key=key, body=body, identity="key", name=None
                )
            except JournalError as error:
                print(number, error)
                break

anyio.run(main, sys.argv[1], backend=sys.argv[2])
"""


async def test_a_disk_that_refuses_to_grow_loses_nothing_that_was_confirmed(path: Path, anyio_backend: str) -> None:
    output, _ = run_child(LIMITED, path, anyio_backend).communicate()
    count, _, message = output.partition(" ")
    assert "Nothing was sent." in message
    assert str(path) in message
    async with Journal(path) as journal:
        assert [entry.key async for entry in journal.pending()] == [f"k{number}" for number in range(int(count))]
        assert (await begin(journal, f"k{count}")).fresh


async def test_a_file_that_another_process_keeps_locked_is_an_error_until_it_lets_go(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite, "_LOCK_TIMEOUT", 0.0)
    async with Journal(path) as journal:
        seen = statements(journal)
        with busy(path) as free:
            outcomes = await together(*(partial(begin, journal, f"k{n}") for n in range(10)))
            assert all(isinstance(error, JournalError) and "locked" in str(error) for error in outcomes)
            assert seen.count("BEGIN IMMEDIATE") <= 2  # each waits once, and they wait at the same time
            free()
        assert (await begin(journal, "k0")).fresh


async def test_a_journal_is_for_one_service(path: Path) -> None:
    async with Journal(path) as journal:
        begun = partial(journal.begin, operation="createJob", key="k", body=b"{}", identity="key", name=None)
        await begun(service="localhost")
        await journal.answer("k", b"a sandbox's answer")
        with pytest.raises(JournalError, match="belongs to localhost, and the client uses production"):
            await begun(service="production")


async def test_a_clock_that_was_far_ahead_does_not_open_the_window_again(path: Path) -> None:
    clock = FakeClock()
    async with Journal(path, replay_window=60.0, clock=clock) as journal:
        now = clock.now
        clock.now = now + 30 * 86400
        await begin(journal, "k")
        clock.now = now
        with pytest.raises(OutcomeUnknownError):
            await begin(journal, "k")
