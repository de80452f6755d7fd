"""Flows of more than one request, and a script that runs them all. The tests kill it and run it again."""

import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
from fake_clock import FakeClock

from convertrilo import AsyncClient, Journal, RetryPolicy

PART_SIZE = 20_000
URGENT = RetryPolicy(max_attempts=100, initial_backoff=0.01, max_backoff=0.2, deadline=600, budget=0)
IMPATIENT = httpx.Timeout(None, connect=5.0, read=0.5)

Flow = Callable[[AsyncClient, str, Path], Awaitable[object]]
"""Runs once, with the files of a folder. Its jobs have its name in their metadata."""


def content_of(name: str) -> bytes:
    """Return the content of the file of this name: 70,000 bytes, which make four different parts."""
    return b"".join(b"%-99s\n" % f"{name} {line}".encode() for line in range(700))


def job(name: str, **rest: Any) -> dict[str, Any]:
    return {
        "codec": "h264",
        "resolution": "480p",
        "fps": 30,
        "externalId": name,
        "metadata": {"operation": name},
        **rest,
    }


def source_of(name: str, folder: Path) -> Path:
    path, content = folder / "in.mp4", content_of(name)
    if not path.exists() or path.stat().st_size < len(content):  # a killed run may have left a part of it
        path.write_bytes(content)
    return path


async def upload(client: AsyncClient, name: str, folder: Path) -> None:
    await client.upload(await client.create_job(job(name)), source_of(name, folder))


async def upload_chunked(client: AsyncClient, name: str, folder: Path) -> None:
    created = await client.create_job(job(name))
    path = source_of(name, folder)
    await client.upload_chunked(created.job_id, path, part_size=PART_SIZE, concurrency=2)


async def encode_file(client: AsyncClient, name: str, folder: Path) -> None:
    await client.encode_file(source_of(name, folder), job(name), output=folder / "out.mp4", timeout=600)


async def on_demand(client: AsyncClient, name: str, folder: Path) -> None:
    body = {"sourceUrl": "https://example.com/in.mp4", "externalId": name, "metadata": {"operation": name}}
    url = await client.on_demand_encode_and_wait(body, timeout=600)
    await client.download(url, folder / "out.mp4")


async def download(client: AsyncClient, name: str, folder: Path) -> None:
    body = job(name, sourceUrl="https://example.com/in.mp4", confirm=True)
    done = await client.wait_for_job((await client.create_job(body)).job_id, timeout=600)
    await client.download(done, folder / "out.mp4")


async def wait_for_jobs(client: AsyncClient, name: str, _: Path) -> None:
    jobs = [{**job(name, sourceUrl="https://example.com/in.mp4"), "externalId": f"{name}/{each}"} for each in "abc"]
    created = await client.create_jobs_bulk({"jobs": jobs, "settings": {"confirm": True}})
    ids = [str(each.job_id) for each in created.jobs or ()]
    results = [each async for each in client.wait_for_jobs(ids, timeout=600, raise_errors=True)]
    assert sorted(each.job_id for each in results) == sorted(ids)


FLOWS: Mapping[str, Flow] = {
    each.__name__: each for each in (upload, upload_chunked, encode_file, on_demand, download, wait_for_jobs)
}
JOBS = {name: 3 if name == "wait_for_jobs" else 1 for name in FLOWS}
"""The number of jobs that each flow creates."""


async def main(base_url: str, folder: str, journal: str | None = None) -> None:
    """Run all flows, one after the other."""
    opened = None if journal is None else Journal(journal)
    async with AsyncClient(
        base_url=base_url, journal=opened, retry=URGENT, clock=FakeClock(sleepers="hurry")
    ) as client:
        for name, flow in FLOWS.items():
            place = Path(folder) / name
            place.mkdir(parents=True, exist_ok=True)
            await flow(client, f"{place.parent.name}/{name}", place)


if __name__ == "__main__":
    backend, *arguments = sys.argv[1:]
    anyio.run(partial(main, *arguments), backend=backend)
