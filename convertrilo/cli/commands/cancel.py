"""`convertrilo cancel`: cancel a job."""

from typing import TYPE_CHECKING, Any

import click

from convertrilo.cli.options import job_output_options, service_options
from convertrilo.cli.output import Output
from convertrilo.cli.service import ServiceTarget

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient


@click.command()
@click.argument("job_id")
@job_output_options
@service_options
def cancel(job_id: str, output: Output, service: ServiceTarget) -> None:
    """Cancel a job. Exit code 1: the job can no longer be canceled."""
    from convertrilo._cancel import cancel_job
    from convertrilo.errors import JobError

    async def work(client: "AsyncClient") -> dict[str, Any]:
        status, released = await cancel_job(client, job_id)
        result = {"jobId": job_id, "status": status.status}
        return result if released is None else {**result, "released": released}

    result = service.run(work)
    output.show(result)
    if result["status"] != "canceled":
        raise JobError(f"job {job_id} is {result['status']}, and can no longer be canceled", job_id=job_id)
