"""`convertrilo upload`: upload the source of a job that was created without one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convertrilo.cli.files import check_readable
from convertrilo.cli.options import journal_option, output_options, quiet_option, service_options
from convertrilo.cli.output import Output
from convertrilo.cli.service import ServiceTarget

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient
    from convertrilo.journal import Journal


@click.command()
@click.argument("job_id")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--confirm", is_flag=True, help="Queue the job after the upload.")
@journal_option
@quiet_option
@output_options
@service_options
def upload(
    job_id: str,
    file: Path,
    journal: "Journal | None",
    output: Output,
    service: ServiceTarget,
    *,
    confirm: bool,
    quiet: bool,
) -> None:
    """Upload FILE, in parts, as the source of a job.

    With a journal, a rerun of an interrupted upload sends only the missing parts. `convertrilo encode` creates the
    job, uploads, waits and downloads in one command.
    """
    from convertrilo.cli.progress import show_progress

    check_readable(file)
    size = file.stat().st_size

    async def work(client: "AsyncClient") -> dict[str, Any]:
        with show_progress(quiet=quiet) as on_progress:
            await client.upload_chunked(job_id, file, on_progress=on_progress)
        if confirm:
            await client.confirm_job(job_id)
        return {"jobId": job_id, "size": size, "status": (await client.job_status(job_id)).status}

    def how_to_resume() -> str:
        rest = "" if journal is None else "; only the missing parts are sent"
        return f"job {job_id} waits for its file: repeat the command to continue{rest}"

    output.show(service.run(work, how_to_resume=how_to_resume, journal=journal), quiet=quiet)
