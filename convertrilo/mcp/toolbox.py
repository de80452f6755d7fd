"""The work of the tools: the client calls behind each tool, and its result for the agent."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast

import attrs

from convertrilo._cancel import cancel_job
from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo._json import loads
from convertrilo._model import Model
from convertrilo.client import AsyncClient
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import JobCanceledError, JobFailedError, NotFoundError
from convertrilo.journal import Entry
from convertrilo.mcp.calls import (
    Arguments,
    CallProgress,
    RecordingJournal,
    ReportProgress,
    recording_entries,
    run_with_progress,
)
from convertrilo.mcp.folders import WAIT_MS, ingest
from convertrilo.mcp.storage import StorageProfile, resolve_storage_profiles
from convertrilo.models import (
    TERMINAL_STATUSES,
    ApproveUnifiedRequest,
    OnDemandStatusResponse,
    StatusResponse,
)
from convertrilo.operations import CREATE_JOBS_BULK, ON_DEMAND_ENCODE

JobStatus = StatusResponse | OnDemandStatusResponse

LISTED = 50
"""The default limit of `list_pending_operations`."""

EXTRA_SETTINGS = ("passes", "optimize", "vmafTarget")
"""Settings that the service accepts for on-demand jobs, though the contract's schema does not name them."""

_IDENTITY = "mcp"
"""The name of every operation without an idempotencyKey, so that its arguments alone are its identity."""

_MAX_REQUEST_SHOWN = 4096
"""Bytes; for a larger request, only the size is listed."""

_TOOLS = {ON_DEMAND_ENCODE.id: "create_encode_job", CREATE_JOBS_BULK.id: "create_jobs_bulk"}
"""The tool behind each operation."""


class _Create(Protocol):
    """A client method that makes jobs, once for each logical operation."""

    async def __call__(
        self, body: dict[str, Any], /, *, idempotency_key: str | None, operation: str | None
    ) -> Model: ...


@attrs.frozen
class Toolbox:
    """Runs the tools with one client."""

    client: AsyncClient
    journal: RecordingJournal
    profiles: Mapping[str, StorageProfile]
    folders: Path
    """The directory that holds a journal for each folder of `ingest_folder`."""
    clock: Clock = SYSTEM_CLOCK
    """The client's clock."""

    async def create_encode_job(self, arguments: Arguments, _: ReportProgress) -> dict[str, Any]:
        """Make an on-demand job for a URL."""
        wire, key = self._request(arguments)
        from_request(ApproveUnifiedRequest, {name: wire.get(name) for name in EXTRA_SETTINGS})  # checks the values
        return await self._once(self.client.on_demand_encode, wire, key)

    async def create_jobs_bulk(self, arguments: Arguments, _: ReportProgress) -> dict[str, Any]:
        """Make many jobs."""
        return await self._once(self.client.create_jobs_bulk, *self._request(arguments))

    async def ingest_folder(self, arguments: Arguments, report: ReportProgress) -> dict[str, Any]:
        """List a folder in a dry run, or make a job for each of its videos."""
        return await ingest(self.client, self.clock, self.folders, self.profiles, arguments, report)

    async def get_job_status(self, arguments: Arguments, _: ReportProgress) -> dict[str, Any]:
        """Read a job's status."""
        return _of_job(arguments["jobId"], await self._status(arguments["jobId"]))

    async def wait_for_job(self, arguments: Arguments, report: ReportProgress) -> dict[str, Any]:
        """Wait until a job has ended, successfully or not, and read its last status."""
        job_id: str = arguments["jobId"]
        status = await self._status(job_id)
        if status.status in TERMINAL_STATUSES:
            return _of_job(job_id, status)
        timeout: float = arguments.get("timeoutMs", WAIT_MS) / 1000

        async def work(on_progress: Callable[[CallProgress], None]) -> JobStatus:
            def on_status(status: JobStatus) -> None:
                on_progress(_progress(status))

            try:
                if isinstance(status, StatusResponse):
                    return await self.client.wait_for_job(job_id, timeout=timeout, on_progress=on_status)
                return await self.client.wait_for_on_demand(job_id, timeout=timeout, on_progress=on_status)
            except (JobFailedError, JobCanceledError) as error:
                return cast("JobStatus", error.status)

        return _of_job(job_id, await run_with_progress(report, work))

    async def cancel_job(self, arguments: Arguments, _: ReportProgress) -> dict[str, Any]:
        """Cancel a job of either kind, and read its status afterwards."""
        job_id: str = arguments["jobId"]
        status, released = await cancel_job(self.client, job_id)
        canceled = status.status == "canceled"
        return {"jobId": job_id, "canceled": canceled, "status": status.status, "released": released}

    async def get_token_balance(self, _: Arguments, __: ReportProgress) -> dict[str, Any]:
        """Read the token balance."""
        return to_wire(await self.client.get_balance())

    async def list_pending_operations(self, arguments: Arguments, _: ReportProgress) -> dict[str, Any]:
        """List the operations that have no answer, those with an unknown outcome first."""
        limit = arguments.get("limit", LISTED)
        listed: list[dict[str, Any]] = []
        for entries in (self.journal.unknown(), self.journal.pending()):
            async with aclosing(cast("AsyncGenerator[Entry]", entries)):
                async for entry in entries:
                    if len(listed) == limit:
                        return {"operations": listed, "more": True}
                    listed.append(_of_entry(entry))
        return {"operations": listed, "more": False}

    # ---- shared by several tools

    def _request(self, arguments: Arguments) -> tuple[dict[str, Any], str | None]:
        """Return the arguments as a request in the wire's shape, and the idempotencyKey, if there is one."""
        wire = resolve_storage_profiles(self.profiles, dict(arguments))
        return wire, wire.pop("idempotencyKey", None)

    async def _once(self, create: _Create, wire: dict[str, Any], key: str | None) -> dict[str, Any]:
        """Make jobs once; the result says whether an earlier call sent the request."""
        with recording_entries() as begun:
            answer = await create(wire, idempotency_key=key, operation=_IDENTITY if key is None else None)
        [entry] = begun
        return {
            **to_wire(answer),
            "replayed": not entry.fresh,
            "idempotencyKey": entry.key,
            "firstSentAt": _time(entry.first_sent_at),
        }

    async def _status(self, job_id: str) -> JobStatus:
        """Return the status of a job; the id does not tell which kind of job it is."""
        try:
            return await self.client.on_demand_status(job_id)
        except NotFoundError:
            return await self.client.job_status(job_id)


def _of_job(job_id: str, status: Model) -> dict[str, Any]:
    return {**to_wire(status), "jobId": job_id}


def _progress(status: JobStatus) -> CallProgress:
    percent = status.pct if isinstance(status, StatusResponse) else status.progress
    # 100 % means success; until then there is no output.
    return 100.0 if status.status == "success" else min(percent or 0.0, 99.9), 100.0, str(status.status)


def _of_entry(entry: Entry) -> dict[str, Any]:
    request = (
        {"request": loads(entry.body)} if len(entry.body) <= _MAX_REQUEST_SHOWN else {"requestBytes": len(entry.body)}
    )
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
