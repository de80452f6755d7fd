"""Logical operations of every kind, and a script that carries them out. The tests kill it and run it again."""

import os
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import anyio

from convertrilo import AsyncClient, Journal

Answer = tuple[str | None, ...]
"""The ids of an operation's jobs, in order."""

Kind = Callable[[AsyncClient, str], Awaitable[Answer]]
"""Carries out the logical operation of this name. Its jobs have the name in their metadata."""


def job(name: str, **rest: Any) -> dict[str, Any]:
    return {"codec": "h264", "resolution": "720p", "fps": 30, "metadata": {"operation": name}, **rest}


def operation_of(request: bytes) -> str:
    """Return the name of the logical operation that a request belongs to."""
    found = re.search(rb'"operation":"([^"]*)"', request)
    assert found is not None
    return found[1].decode()


async def by_external_id(client: AsyncClient, name: str) -> Answer:
    return ((await client.create_job(job(name, externalId=name))).job_id,)


async def by_operation(client: AsyncClient, name: str) -> Answer:
    return ((await client.create_job(job(name), operation=name)).job_id,)


async def by_key(client: AsyncClient, name: str) -> Answer:
    return ((await client.create_job(job(name), idempotency_key=name)).job_id,)


async def by_call(client: AsyncClient, name: str) -> Answer:
    return ((await client.create_job(job(name))).job_id,)


async def on_demand(client: AsyncClient, name: str) -> Answer:
    body = {"sourceUrl": f"https://example.com/{name}.mp4", "externalId": name, "metadata": {"operation": name}}
    return ((await client.on_demand_encode(body)).job_id,)


async def bulk(client: AsyncClient, name: str) -> Answer:
    body = {"jobs": [job(name, externalId=f"{name}/{n}") for n in range(5)]}
    return tuple(item.job_id for item in (await client.create_jobs_bulk(body)).jobs or ())


async def bulk_by_operation(client: AsyncClient, name: str) -> Answer:
    jobs = [job(name, sourceUrl=f"https://example.com/{name}/{n}.mp4") for n in range(3)]
    answer = await client.create_jobs_bulk({"jobs": jobs, "settings": {"confirm": True}}, operation=name)
    return tuple(item.job_id for item in answer.jobs or ())


FOLDER = "videos"
VIDEOS = ("a.mp4", "b.mov", "c.webm")
"""The files in that folder of the sandbox's Google Drive. Its token is in the environment, like the API key."""


async def folder(client: AsyncClient, name: str) -> Answer:
    place = {"folderId": FOLDER, "accessToken": os.environ["DRIVE_TOKEN"]}
    body = {"sourceGoogleDrive": place, "externalIdPrefix": name, "metadata": {"operation": name}}
    answer = await client.on_demand_ingest_folder(body)
    assert len(answer.jobs or ()) == len(VIDEOS)
    return tuple(item.job_id for item in answer.jobs or ())


# ---- the script

STEPS: Sequence[Sequence[Kind]] = (
    *((kind,) for kind in (by_external_id, on_demand, bulk, by_operation, folder, by_key) * 2),
    (by_external_id, on_demand, bulk, by_operation, by_key, folder, bulk_by_operation) * 3,
    *((kind,) for kind in (by_external_id, bulk_by_operation)),
)
"""The steps run one after the other, and the operations of one step run concurrently."""

OPERATIONS = sum(map(len, STEPS))


async def main(base_url: str, folder: str, journal: str | None = None) -> None:
    """Carry out all operations, and print the name and the job ids of each as soon as they are known."""
    numbers = iter(range(OPERATIONS))

    async def carry_out(kind: Kind, name: str) -> None:
        sys.stdout.write(" ".join((name, *map(str, await kind(client, name)))) + "\n")
        sys.stdout.flush()

    async with AsyncClient(base_url=base_url, journal=None if journal is None else Journal(journal)) as client:
        for step in STEPS:
            async with anyio.create_task_group() as tasks:
                for kind in step:
                    tasks.start_soon(carry_out, kind, f"{folder}/{next(numbers)}")


if __name__ == "__main__":
    backend, *arguments = sys.argv[1:]
    anyio.run(partial(main, *arguments), backend=backend)
