"""`submit_jobs` against a model of the service: whatever crashes, grows or is reordered, no job is made twice."""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from fake_clock import FakeClock
from fake_service import FAULTS, CrashError, FakeService, KeyMemory, MortalJournal
from hypothesis import given, settings
from hypothesis import strategies as st
from support import API_KEY, BASE_URL, set_jitter

from convertrilo import AsyncClient, ConvertriloError, JobRefusedError, RetryPolicy, SubmittedJob

PASSING = "probe_failed: not now"
LASTING = "invalid_url: never"


def job(name: str, *, secret: bool) -> dict[str, Any]:
    source = {"bucket": "b", "key": name, **({"secretAccessKey": "s3cr3t"} if secret else {})}
    return {"codec": "av1", "resolution": "720p", "fps": 30, "externalId": name, "sourceS3": source}


@attrs.frozen
class Run:
    """One run: the jobs of its input, in order, and what happens to its requests."""

    names: list[str]
    faults: list[str]


@attrs.frozen
class World:
    """A service and what is run against it."""

    batch_size: int
    concurrency: int
    most_jobs: int
    most_bytes: int
    passing: dict[str, int]
    lasting: set[str]
    secret: bool
    runs: list[Run]


NAMES = [f"job-{number}" for number in range(12)]
names = st.lists(st.sampled_from(NAMES), max_size=18)
faults = st.lists(st.sampled_from(["", "", *FAULTS]), max_size=6)
worlds = st.builds(
    World,
    batch_size=st.integers(1, 6),
    concurrency=st.integers(1, 3),
    most_jobs=st.integers(1, 8),
    most_bytes=st.sampled_from([400, 700, 1 << 20]),
    passing=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 5), max_size=3),
    lasting=st.sets(st.sampled_from(NAMES), max_size=2),
    secret=st.booleans(),
    runs=st.lists(st.builds(Run, names=names, faults=faults), min_size=1, max_size=4),
)


WORLD = World(
    batch_size=3,
    concurrency=1,
    most_jobs=8,
    most_bytes=1 << 20,
    passing={},
    lasting=set(),
    secret=False,
    runs=[],
)


def client_of(service: FakeService, journal: MortalJournal | None, clock: FakeClock) -> AsyncClient:
    client = AsyncClient(
        API_KEY,
        base_url=BASE_URL,
        transport=service.transport_of(journal),
        journal=journal,
        retry=RetryPolicy(max_attempts=3),
        clock=clock,
    )
    return set_jitter(client, 1.0)


async def run(client: AsyncClient, world: World, run: Run, results: list[SubmittedJob]) -> bool:
    """Run once; return whether it came to its end."""
    jobs = (job(name, secret=world.secret) for name in run.names)
    try:
        async for result in client.submit_jobs(jobs, batch_size=world.batch_size, concurrency=world.concurrency):
            results.append(result)  # noqa: PERF401  # so that they stay, if it raises
    except ConvertriloError:
        return False
    except BaseException as error:
        dead = (CrashError,)
        if isinstance(error, dead) or (isinstance(error, BaseExceptionGroup) and error.subgroup(dead)):
            return False
        raise
    return True


async def carry_out(world: World, path: Path, *, heeds_keys: bool = True) -> None:
    clock = FakeClock()
    refused = {**dict.fromkeys(world.passing, PASSING), **dict.fromkeys(world.lasting, LASTING)}
    service = FakeService(
        most_jobs=world.most_jobs,
        most_bytes=world.most_bytes,
        refused=refused,
        refusals=world.passing,
        keys=KeyMemory(heeds_keys=heeds_keys),
    )
    if world.lasting:
        service.creation.refusals = {name: count for name, count in world.passing.items() if name not in world.lasting}
    everything = Run([name for each in world.runs for name in each.names], [])
    for each in (*world.runs, everything, everything):
        service.faults = list(each.faults)
        journal = MortalJournal(path, clock=clock)
        results: list[SubmittedJob] = []
        async with client_of(service, journal, clock) as client:
            finished = await run(client, world, each, results)
        assert service.running == 0
        made = service.made
        for result in results:
            name: Any = result.external_id
            assert result.job_id == (None if result.error else made[name])
            if result.error is not None:
                assert isinstance(result.error, JobRefusedError) or each.faults
                assert name not in made or each.faults or name in world.passing  # a repetition of it goes again
        if finished:
            assert sorted(each.names) == sorted(str(result.external_id) for result in results)
    assert finished
    wanted = set(everything.names)
    settled = {name for name in wanted if name not in world.lasting and world.passing.get(name, 0) <= 3}
    assert settled <= made.keys() <= wanted - world.lasting


def test_whatever_happens_no_job_is_made_twice_and_every_result_is_true(anyio_backend: str) -> None:
    @settings(max_examples=500 if os.environ.get("CHAOS_SCALE") == "full" else 60)
    @given(world=worlds)
    def check(world: World) -> None:
        with tempfile.TemporaryDirectory() as directory:
            anyio.run(partial(carry_out, world, Path(directory) / "journal.db"), backend=anyio_backend)

    check()


def test_the_test_finds_a_second_job_where_there_must_be_one(tmp_path: Path, anyio_backend: str) -> None:
    world = attrs.evolve(WORLD, runs=[Run(NAMES[:3], ["crash after"])])
    path = tmp_path / "journal.db"
    with pytest.raises(AssertionError, match="two jobs"):
        anyio.run(partial(carry_out, world, path, heeds_keys=False), backend=anyio_backend)
