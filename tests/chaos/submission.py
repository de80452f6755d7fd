"""A script that submits jobs in bulk. The tests kill it and run it again."""

import sys
from collections.abc import Iterator
from functools import partial

import anyio
import httpx
from workload import job

from convertrilo import AsyncClient, Journal, RetryPolicy

URGENT = RetryPolicy(max_attempts=100, initial_backoff=0.01, max_backoff=0.1, deadline=600, budget=0)
IMPATIENT = httpx.Timeout(None, connect=1.0, read=0.5)


async def main(base_url: str, journal: str, numbers: str, batch_size: str) -> None:
    """Submit a job for each number in a list like `0-99,5,7`, and print its name and id as soon as they are known."""

    def jobs() -> Iterator[object]:
        for part in numbers.split(","):
            first, _, last = part.partition("-")
            for number in range(int(first), int(last or first) + 1):
                yield job(f"job-{number}", externalId=f"job-{number}")

    async with AsyncClient(base_url=base_url, journal=Journal(journal), retry=URGENT, timeout=IMPATIENT) as client:
        async for result in client.submit_jobs(jobs(), batch_size=int(batch_size)):  # type: ignore[arg-type]
            if result.error is not None:
                raise result.error
            sys.stdout.write(f"{result.external_id} {result.job_id}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    backend, *arguments = sys.argv[1:]
    anyio.run(partial(main, *arguments), backend=backend)
