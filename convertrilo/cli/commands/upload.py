"""`convertrilo upload`: the file of a job that was created without one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convertrilo.cli.options import of_journal, of_output, of_quiet, of_service, readable_file
from convertrilo.cli.output import Output
from convertrilo.cli.service import Service

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient
    from convertrilo.journal import Journal


@click.command()
@click.argument("job_id")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--confirm", is_flag=True, help="Queue the job once its file is there.")
@of_journal
@of_quiet
@of_output
@of_service
def upload(
    job_id: str,
    file: Path,
    journal: "Journal | None",
    output: Output,
    service: Service,
    *,
    confirm: bool,
    quiet: bool,
) -> None:
    """Upload FILE, in parts, for a job that waits for it.

    With a journal, an upload that was interrupted sends only the parts that are missing when it is run again.
    `convertrilo encode` creates the job, uploads, waits and downloads in one.
    """
    from convertrilo.cli.progress import progress

    readable_file(file)
    size = file.stat().st_size

    async def work(client: "AsyncClient") -> dict[str, Any]:
        with progress(quiet=quiet) as on_progress:
            await client.upload_chunked(job_id, file, on_progress=on_progress)
        if confirm:
            await client.confirm_job(job_id)
        return {"jobId": job_id, "size": size, "status": (await client.job_status(job_id)).status}

    def state() -> str:
        rest = "" if journal is None else ", and only what is missing is sent"
        return f"job {job_id} waits for its file: run the same command again{rest}"

    output.show(service.run(work, state=state, journal=journal), quiet=quiet)
