"""`convertrilo download`: download the output of a job."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convertrilo.cli.files import check_writable
from convertrilo.cli.job_wait import JobWait
from convertrilo.cli.options import output_options, service_options, wait_options
from convertrilo.cli.output import Output
from convertrilo.cli.service import ServiceTarget

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient


@click.command()
@click.argument("job_id")
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The output file.  [default: the service's name for it, in the current folder]",
)
@click.option("--wait", "waits", is_flag=True, help="Wait until the job has ended.")
@output_options
@wait_options
@service_options
def download(
    job_id: str, path: Path | None, output: Output, waiting: JobWait, service: ServiceTarget, *, waits: bool
) -> None:
    """Download the output of a job; an interrupted download resumes where it stopped.

    Without --output the file gets the service's name for it, in the current folder; an existing file is not
    overwritten.
    """
    from convertrilo.cli.progress import show_progress

    if path is not None:
        check_writable(path)

    async def work(client: "AsyncClient") -> dict[str, Any]:
        with show_progress(quiet=waiting.quiet) as on_progress:
            found = await (waiting.wait(client, job_id, on_progress) if waits else client.find_job(job_id))
            target = path or _new_file(found.output_filename, job_id)
            await client.download(found, target, on_progress=on_progress)
        return {"jobId": job_id, "output": str(target), "size": target.stat().st_size, "status": found.status}

    def how_to_resume() -> str:
        return "the part that has arrived is kept: repeat the command to continue"

    output.show(service.run(work, how_to_resume=how_to_resume), quiet=waiting.quiet)


def _new_file(name: str | None, job_id: str) -> Path:
    """Return the output file under the service's name; refuse to overwrite a file, which may be the job's source."""
    target = Path(Path(name or "").name or f"{job_id}.mp4")
    check_writable(target)
    if target.exists():
        raise click.UsageError(f"{target} already exists: name the output file with --output")
    return target
