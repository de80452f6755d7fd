"""A script that has a folder in S3 encoded. The tests kill it and run it again."""

import os
import sys

import anyio
import httpx

from convertrilo import AsyncClient, RetryPolicy, S3FolderSource, ingest_folder

TEMPLATE = {"codec": "h264", "resolution": "720p", "fps": 30}
KEYS = "AKIDEXAMPLE", "moto-takes-any-secret"
URGENT = RetryPolicy(max_attempts=100, initial_backoff=0.01, max_backoff=0.2, deadline=600, budget=0)
IMPATIENT = httpx.Timeout(None, connect=1.0, read=3.0 if os.environ.get("CHAOS_SCALE") == "full" else 1.0)


async def main(base_url: str, endpoint: str, bucket: str, batch_size: int, journal: str, report: str) -> None:
    """Have every video of a bucket encoded, wait for all of them, and write the report."""
    async with AsyncClient(base_url=base_url, retry=URGENT, timeout=IMPATIENT) as client:
        source = S3FolderSource(bucket=bucket, endpoint=endpoint, access_key_id=KEYS[0], secret_access_key=KEYS[1])
        done = await ingest_folder(client, source, TEMPLATE, journal=journal, batch_size=batch_size, wait=True)
        await done.write(report)


if __name__ == "__main__":
    backend, base_url, endpoint, bucket, batch_size, journal, report = sys.argv[1:]
    anyio.run(main, base_url, endpoint, bucket, int(batch_size), journal, report, backend=backend)
