"""What the tools do: which calls of the client each one makes, and what an agent is told of it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import attrs

from convertrilo._cancel import cancel_job
from convertrilo._json import loads
from convertrilo._model import Model
from convertrilo.client import AsyncClient
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import JobCanceledError, JobFailedError, NotFoundError
from convertrilo.journal import Entry
from convertrilo.mcp.calls import Arguments, Progress, Tell, WatchedJournal, begun_here, passing_on
from convertrilo.mcp.folders import WAIT_MS, ingest
from convertrilo.mcp.storage import Profile, with_credentials
from convertrilo.models import (
    TERMINAL_STATUSES,
    ApproveUnifiedRequest,
    OnDemandStatusResponse,
    StatusResponse,
)

LISTED = 50
PASSED_ON = ("passes", "optimize", "vmafTarget")
"""Settings that the service takes for an on-demand job as for any, though the contract's schema does not name them."""

_IDENTITY = "mcp"
"""The operation's name where the agent gives no key: then its arguments alone are its identity."""

_MOST_SHOWN = 4096  # bytes of a request
_TOOLS = {"onDemandEncode": "create_encode_job", "createJobsBulk": "create_jobs_bulk"}


@attrs.frozen
class Toolbox:
    """What the tools do, for one client."""

    client: AsyncClient
    journal: WatchedJournal
    profiles: Mapping[str, Profile]
    folders: Path
    """Where the journals of `ingest_folder` are kept, one for each folder."""

    async def create_encode_job(self, arguments: Arguments, _: Tell) -> dict[str, Any]:
        """Make an on-demand job."""
        wire, key = self._request(arguments)
        from_request(ApproveUnifiedRequest, {name: wire.get(name) for name in PASSED_ON})  # only to check them
        return await self._once(self.client.on_demand_encode, wire, key)

    async def create_jobs_bulk(self, arguments: Arguments, _: Tell) -> dict[str, Any]:
        """Make many jobs."""
        return await self._once(self.client.create_jobs_bulk, *self._request(arguments))

    async def ingest_folder(self, arguments: Arguments, tell: Tell) -> dict[str, Any]:
        """Look into a folder, or make a job for each of its videos."""
        return await ingest(self.client, self.folders, self.profiles, arguments, tell)

    async def get_job_status(self, arguments: Arguments, _: Tell) -> dict[str, Any]:
        """Read a job's status."""
        return _of_job(arguments["jobId"], await self._status(arguments["jobId"]))

    async def wait_for_job(self, arguments: Arguments, tell: Tell) -> dict[str, Any]:
        """Wait until a job has ended, whichever way."""
        job_id = arguments["jobId"]
        status = await self._status(job_id)
        if status.status in TERMINAL_STATUSES:
            return _of_job(job_id, status)
        wait: Any = self.client.wait_for_job if isinstance(status, StatusResponse) else self.client.wait_for_on_demand
        timeout = arguments.get("timeoutMs", WAIT_MS) / 1000

        async def work(hear: Callable[[Progress], object]) -> Any:
            def hear_of(status: StatusResponse | OnDemandStatusResponse) -> None:
                hear(_progress(status))

            try:
                return await wait(job_id, timeout=timeout, on_progress=hear_of)
            except (JobFailedError, JobCanceledError) as error:
                return error.status

        return _of_job(job_id, await passing_on(tell, work))

    async def cancel_job(self, arguments: Arguments, _: Tell) -> dict[str, Any]:
        """Cancel a job of either kind, and say what became of it."""
        job_id = arguments["jobId"]
        status, released = await cancel_job(self.client, job_id)
        canceled = status.status == "canceled"
        return {"jobId": job_id, "canceled": canceled, "status": status.status, "released": released}

    async def get_token_balance(self, _: Arguments, __: Tell) -> dict[str, Any]:
        """Read the balance."""
        return to_wire(await self.client.get_balance())

    async def list_pending_operations(self, arguments: Arguments, _: Tell) -> dict[str, Any]:
        """List what has no answer yet."""
        limit = arguments.get("limit", LISTED)
        listed: list[dict[str, Any]] = []
        for entries in (self.journal.unknown(), self.journal.pending()):
            async with aclosing(cast("AsyncGenerator[Entry]", entries)):
                async for entry in entries:
                    if len(listed) == limit:
                        return {"operations": listed, "more": True}
                    listed.append(_of_entry(entry))
        return {"operations": listed, "more": False}

    # ---- what several of them need

    def _request(self, arguments: Arguments) -> tuple[dict[str, Any], str | None]:
        """Return arguments as a request in the wire's shape, and the key, if the agent gave one."""
        wire = with_credentials(self.profiles, dict(arguments))
        return wire, wire.pop("idempotencyKey", None)

    async def _once(
        self, create: Callable[..., Awaitable[Model]], wire: dict[str, Any], key: str | None
    ) -> dict[str, Any]:
        """Make what is to be made once, and say whether an earlier call has made it."""
        with begun_here() as begun:
            answer = await create(wire, idempotency_key=key, operation=_IDENTITY if key is None else None)
        [entry] = begun
        return {
            **to_wire(answer),
            "replayed": not entry.fresh,
            "idempotencyKey": entry.key,
            "firstSentAt": _time(entry.first_sent_at),
        }

    async def _status(self, job_id: str) -> StatusResponse | OnDemandStatusResponse:
        """Return where a job stands; the id does not tell of which kind it is."""
        try:
            return await self.client.on_demand_status(job_id)
        except NotFoundError:
            return await self.client.job_status(job_id)


def _of_job(job_id: str, status: Model) -> dict[str, Any]:
    return {**to_wire(status), "jobId": job_id}


def _progress(status: StatusResponse | OnDemandStatusResponse) -> Progress:
    percent = status.pct if isinstance(status, StatusResponse) else status.progress
    # The last bit is success itself: until then an output is not there.
    return 100.0 if status.status == "success" else min(percent or 0.0, 99.9), 100.0, str(status.status)


def _of_entry(entry: Entry) -> dict[str, Any]:
    request = {"request": loads(entry.body)} if len(entry.body) <= _MOST_SHOWN else {"requestBytes": len(entry.body)}
    return {
        "operation": entry.operation,
        "tool": _TOOLS.get(entry.operation),
        "state": entry.state,
        "idempotencyKey": entry.key,
        "firstSentAt": _time(entry.first_sent_at),
        **request,
    }


def _time(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
