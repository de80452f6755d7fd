"""`convertrilo download`: what a job has made, to a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convertrilo.cli.options import of_output, of_service, of_waiting, writable_file
from convertrilo.cli.output import Output
from convertrilo.cli.service import Service
from convertrilo.cli.wait_flow import Waiting

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient


@click.command()
@click.argument("job_id")
@click.option("-o", "--output", "path", type=click.Path(dir_okay=False, path_type=Path), help="Where to put it.")
@click.option("--wait", "waits", is_flag=True, help="Wait until the job has ended, if it has not.")
@of_output
@of_waiting
@of_service
def download(
    job_id: str, path: Path | None, output: Output, waiting: Waiting, service: Service, *, waits: bool
) -> None:
    """Download what a job has made; a download that broke off goes on where it stopped.

    Without --output the file gets the name that the service gives it, in this folder, unless there is one already.
    """
    from convertrilo.cli.progress import progress

    if path is not None:
        writable_file(path)

    async def work(client: "AsyncClient") -> dict[str, Any]:
        with progress(quiet=waiting.quiet) as on_progress:
            found = await (waiting.wait(client, job_id, on_progress) if waits else client.find_job(job_id))
            target = path or _new_file(found.output_filename, job_id)
            await client.download(found, target, on_progress=on_progress)
        return {"jobId": job_id, "output": str(target), "size": target.stat().st_size, "status": found.status}

    def state() -> str:
        return "what has arrived is kept: run the same command again to go on"

    output.show(service.run(work, state=state), quiet=waiting.quiet)


def _new_file(name: str | None, job_id: str) -> Path:
    """Return where to put a result that has its name from the service: where nothing is, not even its own source."""
    target = Path(Path(name or "").name or f"{job_id}.mp4")
    writable_file(target)
    if target.exists():
        raise click.UsageError(f"{target} is there already: say with --output where to put the result")
    return target
