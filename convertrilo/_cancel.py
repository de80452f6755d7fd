"""Cancelling a job whose kind its id does not tell."""

from convertrilo._base_client import BaseClient
from convertrilo.errors import NotFoundError
from convertrilo.waiting.poller import AnyStatus


async def cancel_job(client: BaseClient, job_id: str) -> tuple[AnyStatus, float | None]:
    """Cancel a job of either kind; return where it stands then, and how many tokens were released, if it is on-demand.

    `onDemandCancel` is asked first. What else knows an on-demand job is open in the contract, and `cancelJob`, where it
    does, would leave one that runs as it is.

    Raises:
        NotFoundError: There is no such job.
    """
    try:
        released = (await client.on_demand_cancel(job_id)).released
        return await client.on_demand_status(job_id), released
    except NotFoundError:
        await client.cancel_job(job_id)
        return await client.job_status(job_id), None
