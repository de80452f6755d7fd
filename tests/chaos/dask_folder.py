"""A script that has a folder in S3 encoded on its own Dask cluster, and kills two of the workers."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import anyio
import anyio.to_thread
from distributed import Client, LocalCluster
from folder import TEMPLATE, URGENT

from convertrilo import AsyncClient, IngestProgress, S3FolderSource, ingest_folder
from convertrilo.dask import DaskEngine

WORKERS, KILLED = 4, 2
SEED = 3


def killer(cluster: LocalCluster, at: list[int]) -> Callable[[IngestProgress], None]:
    """Return a progress callback that kills a worker at each of these numbers of submitted jobs."""
    with Client(cluster, set_as_default=False) as client:
        pids = sorted(client.run(os.getpid).values())
    victims = Random(SEED).sample(pids, len(at))

    def watch(progress: IngestProgress) -> None:
        while at and progress.submitted >= at[0]:
            del at[0]
            os.kill(victims.pop(), signal.SIGKILL)
            sys.stdout.write("killed\n")

    return watch


async def main(
    base_url: str, endpoint: str, bucket: str, batch_size: int, journal: str, report: str, kill_at: str
) -> None:
    """Have every video of a bucket encoded, wait for all of them, and write the report."""
    make = lambda: LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0")  # noqa: E731
    cluster = await anyio.to_thread.run_sync(make)
    try:
        watch = await anyio.to_thread.run_sync(killer, cluster, [int(number) for number in kill_at.split(",")])
        async with AsyncClient(base_url=base_url, retry=URGENT) as client:
            done = await ingest_folder(
                client,
                S3FolderSource(bucket=bucket, endpoint=endpoint),
                TEMPLATE,
                journal=journal,
                batch_size=batch_size,
                concurrency=2 * WORKERS,
                engine=DaskEngine(cluster.scheduler_address),
                wait=True,
                on_progress=watch,
            )
            await done.write(report)
    finally:
        await anyio.to_thread.run_sync(cluster.close)


if __name__ == "__main__":
    backend, base_url, endpoint, bucket, batch_size, journal, report, kill_at = sys.argv[1:]
    os.chdir(Path(journal).parent)  # Dask leaves a folder in its working directory
    anyio.run(main, base_url, endpoint, bucket, int(batch_size), journal, report, kill_at, backend=backend)
