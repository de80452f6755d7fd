"""Jobs per second and peak memory of `submit_jobs`, against the generated client and the plain loop of `create_job`.

Each contestant runs in a process of its own, so that its memory is its own. Building the jobs is part of the work.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import anyio
import httpx

from .generated import load
from .harness import Bench
from .memory import peak_memory

if TYPE_CHECKING:
    from convertrilo import JobCreateRequest, Journal  # imported only after orjson is blocked or not

_SHORT, _LONG = 100_000, 1_000_000
_ROUNDS = 3
_BATCH, _CONCURRENCY = 500, 4  # the defaults of `submit_jobs`
_TARGETS = {"submit_jobs": 80_000, "submit_jobs, journal": 20_000}
_MOST_MEMORY = 100
_WITHOUT = "submit_jobs, no orjson"

Work = Callable[[str, int, Path], Awaitable[None]]


async def run(bench: Bench) -> None:
    """Print a row for each contestant and number of jobs, and how memory grows with the number of jobs."""
    page, scale = bench.page, bench.scale
    page.table("bulk: jobs created from a generator", ["", "jobs", "jobs/s", "CPU us", "peak MiB", "against"])
    rates: dict[str, float] = {}
    for name in _CONTESTANTS:
        if name.startswith("generated") and not bench.generated:
            continue
        counts = [_SHORT, _LONG] if name in _TARGETS else [_COUNTS[name]]
        peaks = []
        for count in counts:
            jobs = min(count, 2_000) if scale.quick else count
            samples = [_measured(bench, name, jobs) for _ in range(scale.rounds(_ROUNDS))]
            speeds = [jobs / seconds for seconds, _, _ in samples]
            rates[name] = median(speeds)
            peaks.append(max(peak for _, _, peak in samples))
            against = f"{rates['submit_jobs'] / rates[name]:.1f} times slower" if name != "submit_jobs" else ""
            if name in _TARGETS and count == _LONG:
                against = page.against(name, speeds, at_least=_TARGETS[name])
            cpu = median(cpu for _, cpu, _ in samples) / jobs * 1e6
            page.row(name, f"{jobs:,}", f"{rates[name]:,.0f}", f"{cpu:.1f}", f"{peaks[-1]:.0f}", against)
        if name in _TARGETS:
            page.row("  memory", "", "", "", "", page.against(f"{name}: MiB", [max(peaks)], at_most=_MOST_MEMORY))
            growth = peaks[-1] / peaks[0]
            page.row(
                "  memory, ten times the jobs", "", "", "", "", page.against(f"{name}: grows", [growth], at_most=1.1)
            )


def _measured(bench: Bench, name: str, count: int) -> tuple[float, float, float]:
    """Return seconds, seconds of CPU and peak memory in MiB."""
    command = [sys.executable, "-m", __name__, name, bench.url, str(count), str(bench.directory)]
    seconds, cpu, peak = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return seconds, cpu, peak


# ---- in the process that is measured


def _jobs(count: int) -> "Iterator[JobCreateRequest]":
    from convertrilo import JobCreateRequest

    for number in range(count):
        name = f"episode-{number:08}"
        source = f"https://media.example.com/in/{name}.mov"
        yield JobCreateRequest(external_id=name, codec="av1", resolution="1080p", fps=25, source_url=source)


async def _submit(url: str, count: int, _: Path, journal: "Journal | None" = None) -> None:
    from convertrilo import AsyncClient

    async with AsyncClient("a-key", base_url=url, journal=journal) as client:
        made = 0
        async for result in client.submit_jobs(_jobs(count), batch_size=_BATCH, concurrency=_CONCURRENCY):
            assert result.job_id is not None
            made += 1
        assert made == count


async def _submit_with_journal(url: str, count: int, directory: Path) -> None:
    from convertrilo import Journal

    with tempfile.TemporaryDirectory(dir=directory) as name:
        await _submit(url, count, directory, Journal(Path(name) / "bulk.db"))


async def _loop(url: str, count: int, _: Path) -> None:
    from convertrilo import AsyncClient

    async with AsyncClient("a-key", base_url=url) as client:
        for job in _jobs(count):
            assert (await client.create_job(job)).job_id


async def _generated(url: str, count: int, directory: Path) -> None:
    """Send batches of the same size and concurrency with the client that openapi-python-client generates."""
    generated = load(directory)
    models = generated.models
    key = {"token": "a-key", "prefix": "", "auth_header_name": "X-API-Key"}

    async def batches() -> AsyncIterator[object]:
        jobs = []
        for number in range(count):
            name = f"episode-{number:08}"
            jobs.append(
                models.JobCreateRequest(
                    external_id=name,
                    codec=models.JobCreateRequestCodec("av1"),
                    resolution=models.JobCreateRequestResolution("1080p"),
                    fps=25,
                    source_url=f"https://media.example.com/in/{name}.mov",
                )
            )
            if len(jobs) == _BATCH:
                yield models.BulkCreateRequest(jobs=jobs)
                jobs = []
        if jobs:
            yield models.BulkCreateRequest(jobs=jobs)

    made = 0

    async def send(body: object) -> None:
        nonlocal made
        async with slots:
            answer = await generated.create_jobs_bulk(client=client, body=body)
        made += sum(1 for each in answer.jobs if each.job_id)

    slots = anyio.Semaphore(_CONCURRENCY)
    async with (
        generated.client(base_url=url, **key, timeout=httpx.Timeout(60)) as client,
        anyio.create_task_group() as tasks,
    ):
        async for body in batches():
            async with slots:
                tasks.start_soon(send, body)
            await anyio.sleep(0)  # noqa: ASYNC115
    assert made == count


_CONTESTANTS: dict[str, Work] = {
    "submit_jobs": _submit,
    "submit_jobs, journal": _submit_with_journal,
    _WITHOUT: _submit,
    "generated client, bulk": _generated,
    "loop of create_job": _loop,
}
_COUNTS = {_WITHOUT: 100_000, "generated client, bulk": 50_000, "loop of create_job": 3_000}


if __name__ == "__main__":
    _name, _url, _count, _directory = sys.argv[1:]
    if _name == _WITHOUT:
        sys.modules["orjson"] = None  # type: ignore[assignment]  # makes the import fail
    _started, _cpu = time.perf_counter(), time.process_time()
    asyncio.run(_CONTESTANTS[_name](_url, int(_count), Path(_directory)))  # type: ignore[arg-type]
    _used = time.perf_counter() - _started, time.process_time() - _cpu
    sys.stdout.write(json.dumps([*_used, peak_memory()]))
