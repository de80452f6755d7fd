"""Cancelling a job without knowing its kind: a job's id does not tell whether the job is on-demand."""

from convertrilo._base_client import BaseClient
from convertrilo.errors import NotFoundError
from convertrilo.models import OnDemandStatusResponse, StatusResponse


async def cancel_job(client: BaseClient, job_id: str) -> tuple[StatusResponse | OnDemandStatusResponse, float | None]:
    """Cancel a job of either kind (`onDemandCancel`, or else `cancelJob`).

    `onDemandCancel` comes first, because the contract does not say whether `cancelJob` accepts on-demand jobs; if it
    does, it has no effect on a running one.

    Returns:
        The status after the cancellation, and the released tokens (neu) if the job is on-demand.

    Raises:
        NotFoundError: There is no such job.
    """
    try:
        released = (await client.on_demand_cancel(job_id)).released
        return await client.on_demand_status(job_id), released
    except NotFoundError:
        await client.cancel_job(job_id)
        return await client.job_status(job_id), None
