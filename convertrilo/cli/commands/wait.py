"""`convertrilo wait`: wait until a job has ended."""

from typing import TYPE_CHECKING

import click

from convertrilo.cli.job_wait import JobWait
from convertrilo.cli.options import job_output_options, service_options, wait_options
from convertrilo.cli.output import Output
from convertrilo.cli.service import ServiceTarget

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient
    from convertrilo.models import OnDemandStatusResponse, StatusResponse


@click.command()
@click.argument("job_id")
@job_output_options
@wait_options
@service_options
def wait(job_id: str, output: Output, waiting: JobWait, service: ServiceTarget) -> None:
    """Wait until a job has ended, and show its last status. Exit code 1: the job failed or was canceled."""
    from convertrilo.cli.progress import show_progress

    def how_to_resume() -> str:
        return f"the job is still running: wait for it again with convertrilo wait {job_id}{service.suffix}"

    async def work(client: "AsyncClient") -> "StatusResponse | OnDemandStatusResponse":
        with show_progress(quiet=waiting.quiet) as on_progress:
            return await waiting.wait(client, job_id, on_progress)

    output.show(service.run(work, how_to_resume=how_to_resume), quiet=waiting.quiet)
