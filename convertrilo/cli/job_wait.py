"""Wait for one job: how long, how often to poll, and whether to show progress."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convertrilo._clock import Clock
    from convertrilo.client import AsyncClient
    from convertrilo.models import OnDemandStatusResponse, StatusResponse
    from convertrilo.transfers import Progress


class JobWait:
    """How to wait for one job.

    Args:
        timeout: The longest wait, in seconds.
        interval: The longest pause between two reads of the job's status, in seconds; `None` leaves it to the client.
        quiet: Whether to show no progress.
        clock: The client's clock, if it is not the system's.
    """

    def __init__(self, timeout: float, interval: float | None, *, quiet: bool, clock: "Clock | None" = None) -> None:
        self.timeout = timeout
        self.interval = interval
        self.quiet = quiet
        self._clock = clock

    async def wait(
        self, client: "AsyncClient", job_id: str, on_progress: "Callable[[Progress], None]"
    ) -> "StatusResponse | OnDemandStatusResponse":
        """Wait until a job of either kind succeeds, and return its last status."""
        from convertrilo.encoding import telling_percent
        from convertrilo.models import StatusResponse

        on_status = telling_percent(job_id, on_progress)
        found = await client.find_job(job_id)
        async with self.polling(client, lambda: job_id):
            if isinstance(found, StatusResponse):
                return await client.wait_for_job(job_id, timeout=self.timeout, on_progress=on_status)
            return await client.wait_for_on_demand(job_id, timeout=self.timeout, on_progress=on_status)

    @asynccontextmanager
    async def polling(self, client: "AsyncClient", job_id: Callable[[], str | None]) -> AsyncGenerator[None]:
        """Have the client read a job's status at least once per interval while the block waits for the job.

        Args:
            client: The client that waits for the job.
            job_id: Returns the job's id, or None while the job does not exist yet.
        """
        if self.interval is None:
            yield
            return
        import anyio

        from convertrilo._clock import SYSTEM_CLOCK

        interval, clock = self.interval, self._clock or SYSTEM_CLOCK

        async def notify_regularly() -> None:
            while True:
                await clock.sleep(interval)
                if (known := job_id()) is not None:
                    client.notify(known)

        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(notify_regularly)
            try:
                yield
            except Exception as error:  # noqa: BLE001  # raised below, where the group does not wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
