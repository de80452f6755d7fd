"""Waiting for a job as the options say: how long, how often, and with what on the screen."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient
    from convertrilo.models import OnDemandStatusResponse, StatusResponse
    from convertrilo.transfers import Progress


class Waiting:
    """How long to wait at most, in seconds, and how often to ask at least; whether anything is shown meanwhile."""

    def __init__(self, timeout: float, interval: float | None, *, quiet: bool) -> None:
        self.timeout = timeout
        self.interval = interval
        self.quiet = quiet

    async def wait(
        self, client: "AsyncClient", job_id: str, on_progress: "Callable[[Progress], None]"
    ) -> "StatusResponse | OnDemandStatusResponse":
        """Wait for a job of either kind, and return its last status."""
        from convertrilo.encoding import telling_percent
        from convertrilo.models import StatusResponse

        tell = telling_percent(job_id, on_progress)
        found = await client.find_job(job_id)
        async with self.asking(client, lambda: job_id):
            if isinstance(found, StatusResponse):
                return await client.wait_for_job(job_id, timeout=self.timeout, on_progress=tell)
            return await client.wait_for_on_demand(job_id, timeout=self.timeout, on_progress=tell)

    @asynccontextmanager
    async def asking(self, client: "AsyncClient", job_id: Callable[[], str | None]) -> AsyncGenerator[None]:
        """Have the status of a job that somebody waits for read as often as is wanted."""
        if self.interval is None:
            yield
            return
        import anyio

        from convertrilo._base_client import engine_of

        interval, clock = self.interval, engine_of(client)[0].clock

        async def ask() -> None:
            while True:
                await clock.sleep(interval)
                if (known := job_id()) is not None:
                    client.notify(known)

        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            try:
                yield
            except Exception as error:  # noqa: BLE001  # raised below, where the group does not wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
