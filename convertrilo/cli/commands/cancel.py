"""`convertrilo cancel`: a job that is not wanted any more."""

from typing import TYPE_CHECKING, Any

import click

from convertrilo.cli.options import of_job_output, of_service
from convertrilo.cli.output import Output
from convertrilo.cli.service import Service

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient


@click.command()
@click.argument("job_id")
@of_job_output
@of_service
def cancel(job_id: str, output: Output, service: Service) -> None:
    """Cancel a job. One that cannot be canceled any more is exit code 1."""
    from convertrilo._cancel import cancel_job
    from convertrilo.errors import JobError

    async def work(client: "AsyncClient") -> dict[str, Any]:
        status, released = await cancel_job(client, job_id)
        result = {"jobId": job_id, "status": status.status}
        return result if released is None else {**result, "released": released}

    result = service.run(work)
    output.show(result)
    if result["status"] != "canceled":
        raise JobError(f"job {job_id} is {result['status']}, and can be canceled no more", job_id=job_id)
