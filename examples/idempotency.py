"""Nothing is made twice: create a job and a bulk of jobs, be killed, run again, and get the same ids.

    pip install -e ".[sandbox]"
    python examples/idempotency.py /tmp/idempotency

Kill it while it waits (it prints the command), or at any other moment, and run it again with the same folder: what was
answered comes from the journal, what was not is sent again under its key, and the ids stay what they were. The folder
holds the journal and, in place of the real service, a sandbox with its state.
"""

import os
import sys
from pathlib import Path

import anyio
import anyio.to_thread

from convertrilo import AttemptEvent, BulkCreateRequest, JobCreateRequest, Journal
from convertrilo.sandbox import Sandbox


def show(event: AttemptEvent) -> None:
    """Print what was sent, and what came of it."""
    print(f"sent {event.operation}: {event.outcome}")


async def main(folder: Path) -> None:
    """Have a job and a bulk of jobs, which are the same in every run."""
    async with (
        Sandbox(state=folder / "sandbox") as sandbox,
        sandbox.client(journal=Journal(folder / "journal.db"), on_event=show) as client,
    ):
        # The body's own external_id says that this job is wanted once.
        wanted = JobCreateRequest(external_id="holiday.mp4", codec="av1", resolution="1080p", fps=30)
        job = await client.create_job(wanted)
        print("job", job.job_id, flush=True)

        print(f"Press Enter for the bulk, or: kill -9 {os.getpid()}", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)

        # Jobs without an external_id need a name for what is wanted once.
        parts = [
            JobCreateRequest(original_filename=name, codec="h264", resolution="720p", fps=30)
            for name in ("1.mp4", "2.mp4", "3.mp4")
        ]
        bulk = await client.create_jobs_bulk(BulkCreateRequest(jobs=parts), operation="parts of the holiday")
        print("bulk", *(item.job_id for item in bulk.jobs or ()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/idempotency.py FOLDER")
    anyio.run(main, Path(sys.argv[1]))
