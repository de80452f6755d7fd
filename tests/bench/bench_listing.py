"""Listing a folder in S3: `list_objects` beside boto3's paginator, from moto's server in a process of its own."""

import importlib
import time
from typing import Any

import anyio.to_thread

from convertrilo import AsyncClient, S3FolderSource
from convertrilo.ingest.listing import list_objects
from convertrilo.ingest.objects import Page
from convertrilo.ingest.s3_folder import open_folder

from .harness import Bench, Measure, Sample, in_turns, micro, rate, ratios, typical
from .object_server import BUCKET, serving_objects

_KEYS = ("AKIDEXAMPLE", "moto-takes-any-secret")
_CONTESTANTS = ("boto3, in a thread", "list_objects")


async def run(bench: Bench) -> None:
    """Print objects per second, and the CPU per object."""
    page = bench.page
    count = 20 if bench.scale.quick else 100_000
    page.table(
        f"listing: {count:,} objects",
        ["", "objects/s", "CPU us each", "of boto3's CPU"],
        "The server sorts the whole bucket for each page, and needs most of the time: CPU is what the client costs.",
    )
    with serving_objects(count) as endpoint:
        async with AsyncClient("a-key", base_url=bench.url) as client:
            contestants = dict(
                zip(_CONTESTANTS, (_boto3(endpoint, count), _ours(client, endpoint, count)), strict=True)
            )
            rounds = await in_turns(contestants, bench.scale.rounds(2))
    theirs, ours = _CONTESTANTS
    page.row(theirs, rate(typical(rounds, theirs)), micro(typical(rounds, theirs, "cpu")), "1")
    share = ratios(rounds, ours, theirs, "cpu")
    page.row(
        ours,
        rate(typical(rounds, ours)),
        micro(typical(rounds, ours, "cpu")),
        page.against(ours, share, at_most=0.33),
    )


def _boto3(endpoint: str, count: int) -> Measure:
    def page_through() -> int:
        config = importlib.import_module("botocore.config").Config(s3={"addressing_style": "path"})
        s3: Any = importlib.import_module("boto3").client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=_KEYS[0],
            aws_secret_access_key=_KEYS[1],
            config=config,
        )
        try:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
            return sum(len([(each["Key"], each["Size"], each["ETag"]) for each in page["Contents"]]) for page in pages)
        finally:
            s3.close()

    async def measure() -> Sample:
        started, started_cpu = time.perf_counter(), time.process_time()
        found = await anyio.to_thread.run_sync(page_through)
        return _sample(started, started_cpu, found, count)

    return measure


def _ours(client: AsyncClient, endpoint: str, count: int) -> Measure:
    source = S3FolderSource(
        bucket=BUCKET, endpoint=endpoint, region="us-east-1", access_key_id=_KEYS[0], secret_access_key=_KEYS[1]
    )

    async def measure() -> Sample:
        found = 0

        async def take(page: Page) -> None:
            nonlocal found
            found += len(page)

        started, started_cpu = time.perf_counter(), time.process_time()
        await list_objects(client, await open_folder(source), take)
        return _sample(started, started_cpu, found, count)

    return measure


def _sample(started: float, started_cpu: float, found: int, count: int) -> Sample:
    assert found == count
    return Sample((time.perf_counter() - started) / count, (time.process_time() - started_cpu) / count)
