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
    from convertrilo.errors import JobError
    from convertrilo.models import StatusResponse

    async def work(client: "AsyncClient") -> dict[str, Any]:
        released: float | None = None
        if isinstance(await client.find_job(job_id), StatusResponse):
            await client.cancel_job(job_id)
            status = (await client.job_status(job_id)).status
        else:
            released = (await client.on_demand_cancel(job_id)).released
            status = (await client.on_demand_status(job_id)).status
        result = {"jobId": job_id, "status": status}
        return result if released is None else {**result, "released": released}

    result = service.run(work)
    output.show(result)
    if result["status"] != "canceled":
        raise JobError(f"job {job_id} is {result['status']}, and can be canceled no more", job_id=job_id)
