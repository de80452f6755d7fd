"""A folder in S3 under faults and kills: every video has one job, in the report and in the sandbox's ledger.

`CHAOS_SCALE=full` (`nox -s chaos`): 20,000 videos, 30 kills, and 500 videos that are added later.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import anyio
import dask_folder
import folder
import pytest
from faults import FAULTS
from killer import UNANSWERED, KillableScript, Killer
from object_store import ObjectStore, connect
from proxy import Plan, Proxy, Request, proxy, refuse, stall
from sandbox_process import serving

from convertrilo.sandbox import Sandbox

FULL = os.environ.get("CHAOS_SCALE") == "full"
VIDEOS, BATCH, PAGE, KILLS, MORE = (20_000, 100, 1000, 30, 500) if FULL else (120, 6, 25, 3, 10)
BUCKET = "films"
SEED = 3
FAULTY = 0.2
"""The share of requests, to the service and to S3, that meet a fault."""
SERVER = Path(__file__).parents[1] / "bench" / "object_server.py"


@contextmanager
def objects(count: int) -> Iterator[ObjectStore]:
    """Run an S3 server with this number of videos in a process of its own."""
    environment = {**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}
    command = [sys.executable, str(SERVER), str(count)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
        store = connect(endpoint, *folder.KEYS)
        try:
            yield store
        finally:
            store.s3.close()
            process.communicate()


class Mayhem:
    """Decides from a seed what happens to the nth request, and at which request the script is killed."""

    def __init__(self, name: str, faults: Mapping[str, Plan], killer: Killer) -> None:
        self.killer = killer
        self.struck: Counter[str] = Counter()
        self.requests: list[Request] = []
        self._name = name
        self._faults = faults

    def __call__(self, request: Request) -> Plan:
        self.requests.append(request)
        if self.killer.at is not None:
            self.killer.at -= 1
            if self.killer.at == 0:
                return replace(self.killer.plan, end=self.killer.kill)
            if self.killer.at < 0:
                return Plan(sent=0, answered=None, end=self.killer.wait)  # or the script could end before it is killed
        random = Random(f"{SEED}/{self._name}/{len(self.requests)}")
        if random.random() >= FAULTY:
            return Plan()
        fault = random.choice(sorted(self._faults))
        self.struck[fault] += 1
        return self._faults[fault]


@dataclass
class FolderScript(KillableScript):
    """The script that has a folder encoded, and its report."""

    report: Path

    async def run(self, *more: str) -> int:
        return await super().run(*more, str(self.report))

    async def run_and_kill(self, random: Random) -> bool:
        """Kill the script after a random number of requests to S3 or the service. Return False if it ended before."""
        self.killer.at = random.randint(1, VIDEOS // PAGE + 2 * VIDEOS // BATCH // KILLS)
        self.killer.plan = random.choice((Plan(), *UNANSWERED))
        code = await self.run()
        assert code in (0, -signal.SIGKILL)
        return code != 0

    async def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (await anyio.Path(self.report).read_text()).splitlines()]

    async def reported(self) -> dict[str, str]:
        """Check that every job has succeeded, and return the job of each external id in the report."""
        rows = await self.rows()
        assert {row["status"] for row in rows} == {"success"}
        assert len({row["key"] for row in rows}) == len(rows)
        return {row["external_id"]: row["job_id"] for row in rows}


@asynccontextmanager
async def script(
    tmp_path: Path, backend: str, store: ObjectStore, faults: Mapping[str, Plan] = FAULTS
) -> AsyncGenerator[tuple[FolderScript, Mayhem, Mayhem]]:
    killer = Killer()
    of_s3 = {name: faults[name] for name in faults.keys() - {"in progress", "connections refused"}}
    service, s3 = Mayhem("service", faults, killer), Mayhem("s3", of_s3, killer)
    port = int(store.endpoint.rpartition(":")[2])
    async with (
        serving(tmp_path / "state", "--allow-private-sources") as server,
        proxy(server.port, service) as connections,
        proxy(port, s3) as store_connections,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(open_again, connections)
        journal = str(tmp_path / "run.db")
        arguments = [connections.url, store_connections.url, BUCKET, str(BATCH), journal]
        report = tmp_path / "report.jsonl"
        yield FolderScript(folder.__file__, backend, arguments, server.api_key, killer, report), service, s3
        tasks.cancel_scope.cancel()


async def open_again(connections: Proxy) -> None:
    """Open the proxy again shortly after it was shut."""
    while True:
        await anyio.sleep(0.05)
        connections.open()


async def jobs_of(state: Path) -> dict[str, str]:
    """Return the job of each external id from the state of a sandbox that has stopped; check that each has one job."""
    async with Sandbox(state=state) as sandbox:
        jobs = sandbox.jobs
    found = {str(job.external_id): job.id for job in jobs}
    assert len(found) == len(jobs), "an object has two jobs"
    return found


async def test_a_folder_killed_and_run_again_has_every_video_encoded_once(tmp_path: Path, anyio_backend: str) -> None:
    with objects(VIDEOS) as store:
        async with script(tmp_path, anyio_backend, store) as (victim, service, s3):
            random, kills = Random(SEED), 0
            while kills < KILLS:
                kills += await victim.run_and_kill(random)
            await victim.run_to_the_end()
            told = await victim.reported()
            assert len(told) == VIDEOS
            for number in range(MORE):
                store.s3.put_object(Bucket=BUCKET, Key=f"{number % 10}/{number * 7:07}+.mp4", Body=b"")
            await victim.run_to_the_end()
            grown = await victim.reported()
    assert len(grown) == VIDEOS + MORE
    assert told.items() <= grown.items()
    assert service.struck
    assert s3.struck
    assert await jobs_of(tmp_path / "state") == grown


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"] if FULL else ["trio"])  # a cluster is slow to start
async def test_a_folder_on_a_cluster_that_loses_workers_has_every_video_encoded_once(
    tmp_path: Path, anyio_backend: str
) -> None:
    quick = {name: plan for name, plan in FAULTS.items() if plan.end not in (stall, refuse)}
    with objects(VIDEOS) as store:
        async with script(tmp_path, anyio_backend, store, quick) as (victim, service, s3):
            kill_at = f"{VIDEOS // 4},{VIDEOS // 2}"
            command = [
                sys.executable,
                dask_folder.__file__,
                anyio_backend,
                *victim.arguments,
                str(victim.report),
                kill_at,
            ]
            keys = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), folder.KEYS, strict=True))
            environment = {**os.environ, **keys, "CONVERTRILO_API_KEY": victim.api_key}
            done = await anyio.run_process(command, stderr=None, env=environment)
            assert done.stdout.decode().split() == ["killed"] * dask_folder.KILLED
            told = await victim.reported()
    assert len(told) == VIDEOS
    assert service.struck
    assert s3.struck
    assert await jobs_of(tmp_path / "state") == told


async def test_two_processes_on_one_journal_share_the_work(tmp_path: Path, anyio_backend: str) -> None:
    codes: list[int] = []

    async def run(one: FolderScript) -> None:
        codes.append(await one.run())

    with objects(VIDEOS) as store:
        async with script(tmp_path, anyio_backend, store) as (first, service, _):
            second = replace(first, report=tmp_path / "second.jsonl")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run, first)
                tasks.start_soon(run, second)
            assert codes == [0, 0]
            told = [
                {row["external_id"]: row["job_id"] for row in await one.rows() if row["job_id"]}
                for one in (first, second)
            ]
    made = await jobs_of(tmp_path / "state")
    assert len(made) == VIDEOS
    assert all(each.items() <= made.items() for each in told)
    assert max(len(each) for each in told) == VIDEOS
    batches: dict[str, set[str | None]] = defaultdict(set)
    for request in service.requests:
        for name in re.findall(rb'"externalId":"([^"]+)"', request.message if request.key else b""):
            batches[name.decode()].add(request.key)
    assert {len(keys) for keys in batches.values()} == {1}, "an object went out in two batches"
