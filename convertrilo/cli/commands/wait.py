"""`convertrilo wait`: until a job has ended."""

from typing import TYPE_CHECKING

import click

from convertrilo.cli.options import of_job_output, of_service, of_waiting
from convertrilo.cli.output import Output
from convertrilo.cli.service import Service
from convertrilo.cli.wait_flow import Waiting

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient
    from convertrilo.models import OnDemandStatusResponse, StatusResponse


@click.command()
@click.argument("job_id")
@of_job_output
@of_waiting
@of_service
def wait(job_id: str, output: Output, waiting: Waiting, service: Service) -> None:
    """Wait until a job has ended, and show its last status. A job that has not succeeded is exit code 1."""
    from convertrilo.cli.progress import progress

    def state() -> str:
        return f"the job goes on: wait for it again with convertrilo wait {job_id}{service.suffix}"

    async def work(client: "AsyncClient") -> "StatusResponse | OnDemandStatusResponse":
        with progress(quiet=waiting.quiet) as on_progress:
            return await waiting.wait(client, job_id, on_progress)

    output.show(service.run(work, state=state), quiet=waiting.quiet)
