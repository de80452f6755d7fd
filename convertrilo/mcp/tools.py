"""The tools: what each is called, what it takes and gives, and which calls of the client it makes."""

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, cast

import anyio
import attrs

from convertrilo._json import loads
from convertrilo._model import Model
from convertrilo.client import AsyncClient
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import ConvertriloError, JobCanceledError, JobFailedError, NotFoundError
from convertrilo.journal import Entry, Journal
from convertrilo.mcp.schemas import Schema, answer_schema, object_schema, request_schema
from convertrilo.mcp.storage import Profile, with_credentials
from convertrilo.models import (
    TERMINAL_STATUSES,
    ApproveUnifiedRequest,
    BulkCreateRequest,
    BulkCreateResponse,
    OnDemandEncodeRequest,
    OnDemandEncodeResponse,
    OnDemandStatusResponse,
    StatusResponse,
    TokenBalanceResponse,
)

Arguments = Mapping[str, Any]
Tell = Callable[[float, str], Awaitable[None]]
"""Reports how far a call is: a percentage, and in words."""

_IDENTITY = "mcp"
"""The operation's name where the agent gives no key: then its arguments alone are its identity."""

_MOST_SHOWN = 4096  # bytes of a request
_TOOLS = {"onDemandEncode": "create_encode_job", "createJobsBulk": "create_jobs_bulk"}

_begun: ContextVar[list[Entry] | None] = ContextVar("_begun", default=None)


class WatchedJournal(Journal):
    """A journal that tells the tool's call whether what it begins was begun before."""

    async def begin(self, **operation: Any) -> Entry:
        """See `Journal.begin`."""
        entry = await super().begin(**operation)
        begun = _begun.get()
        if begun is not None:
            begun.append(entry)
        return entry


@attrs.frozen
class Toolbox:
    """What the tools do, for one client."""

    client: AsyncClient
    journal: WatchedJournal
    profiles: Mapping[str, Profile]

    async def create_encode_job(self, arguments: Arguments, _: Tell) -> dict[str, Any]:
        """Make an on-demand job."""
        wire, key = self._request(arguments)
        from_request(ApproveUnifiedRequest, {name: wire.get(name) for name in _PASSED_ON})  # only to check them
        return await self._once(self.client.on_demand_encode, wire, key)

    async def create_jobs_bulk(self, arguments: Arguments, _: Tell) -> dict[str, Any]:
        """Make many jobs."""
        return await self._once(self.client.create_jobs_bulk, *self._request(arguments))

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
        timeout = arguments.get("timeoutMs", _WAIT_MS) / 1000
        failure: ConvertriloError | None = None
        news, heard = anyio.create_memory_object_stream[StatusResponse | OnDemandStatusResponse](math.inf)

        async def pass_on() -> None:
            async with heard:
                async for each in heard:
                    await tell(_percent(each), str(each.status))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pass_on)
            with news:
                try:
                    status = await wait(job_id, timeout=timeout, on_progress=news.send_nowait)
                except (JobFailedError, JobCanceledError) as error:
                    status = error.status
                except ConvertriloError as error:  # raised out here, the group would wrap it
                    failure = error
        if failure is not None:
            raise failure
        return _of_job(job_id, status)

    async def cancel_job(self, arguments: Arguments, _: Tell) -> dict[str, Any]:
        """Cancel a job of either kind, and say what became of it."""
        job_id = arguments["jobId"]
        released: float | None = None
        status: StatusResponse | OnDemandStatusResponse
        try:
            released = (await self.client.on_demand_cancel(job_id)).released
            status = await self.client.on_demand_status(job_id)
        except NotFoundError:
            await self.client.cancel_job(job_id)
            status = await self.client.job_status(job_id)
        canceled = status.status == "canceled"
        return {"jobId": job_id, "canceled": canceled, "status": status.status, "released": released}

    async def get_token_balance(self, _: Arguments, __: Tell) -> dict[str, Any]:
        """Read the balance."""
        return to_wire(await self.client.get_balance())

    async def list_pending_operations(self, arguments: Arguments, _: Tell) -> dict[str, Any]:
        """List what has no answer yet."""
        limit = arguments.get("limit", _LISTED)
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
        entries: list[Entry] = []
        token = _begun.set(entries)
        try:
            answer = await create(wire, idempotency_key=key, operation=_IDENTITY if key is None else None)
        finally:
            _begun.reset(token)
        entry = entries[0]
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


def _percent(status: StatusResponse | OnDemandStatusResponse) -> float:
    percent = status.pct if isinstance(status, StatusResponse) else status.progress
    return 100.0 if status.status == "success" else min(percent or 0.0, 99.9)  # the last bit is success itself


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


# ---- the table


@attrs.frozen(kw_only=True)
class Tool:
    """One row: everything that is particular to a tool."""

    name: str
    title: str
    description: str
    takes: Schema
    gives: Schema
    run: Callable[[Toolbox, Arguments, Tell], Awaitable[dict[str, Any]]]
    reads_only: bool = False
    destroys: bool = False
    on_the_network: bool = True


_PASSED_ON = ("passes", "optimize", "vmafTarget")
"""Settings that the service takes here as everywhere, though the contract's schema does not name them."""

_WAIT_MS = 1_800_000
_LISTED = 50

_JOB_ID: Schema = {"type": "string", "minLength": 1, "description": "The job's id, as the tool that made it answered."}
_KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": "^[!-~]([ -~]*[!-~])?$",
    "description": "Your own name for what is to be done once. Without one, the other arguments are its identity: the "
    "same arguments again are the same job. Give another key to have the same made once more.",
}
_REPLAYED: dict[str, Schema] = {
    "replayed": {
        "type": "boolean",
        "description": "Whether an earlier call began this: then this is that call's answer, and nothing new was made.",
    },
    "idempotencyKey": {"type": "string", "description": "The key that it was sent under."},
    "firstSentAt": {"type": "string", "description": "When it was sent first."},
}
_NOTHING_TWICE = (
    "Repeating a call with the same arguments, even after a crash, makes nothing twice: `replayed` is then true."
)


def tools(profiles: Mapping[str, Profile]) -> list[Tool]:
    """Return the tools, for the storage profiles that there are."""
    names = sorted(profiles)
    encode = request_schema(OnDemandEncodeRequest, names)
    settings = request_schema(ApproveUnifiedRequest, names)
    encode["properties"] |= {name: settings["properties"][name] for name in _PASSED_ON} | {"idempotencyKey": _KEY}
    bulk = request_schema(BulkCreateRequest, names)
    bulk["properties"]["idempotencyKey"] = _KEY
    wait = {
        "jobId": _JOB_ID,
        "timeoutMs": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 86_400_000,
            "default": _WAIT_MS,
            "description": "Milliseconds to wait at most.",
        },
        "pollIntervalMs": {
            "type": "number",
            "exclusiveMinimum": 0,
            "deprecated": True,
            "description": "Has no effect: how often the status is read follows the job's progress.",
        },
    }
    limit = {"type": "integer", "minimum": 1, "maximum": 200, "default": _LISTED, "description": "Most to list."}
    job = answer_schema(StatusResponse, OnDemandStatusResponse, also={"jobId": {"type": "string"}})
    return [
        Tool(
            name="create_encode_job",
            title="Encode a video from a URL",
            description="Encode the video at a URL: makes an on-demand job, which is queued and costs tokens at once. "
            f"The answer has its jobId; use wait_for_job next. {_NOTHING_TWICE}",
            takes=encode,
            gives=answer_schema(OnDemandEncodeResponse, also=_REPLAYED),
            run=Toolbox.create_encode_job,
        ),
        Tool(
            name="get_job_status",
            title="Read a job's status",
            description="Read where a job stands: created, queued, running, success, failed or canceled. After success "
            "it has a downloadUrl, or the output is where it was to be put.",
            takes=object_schema({"jobId": _JOB_ID}, ["jobId"]),
            gives=job,
            run=Toolbox.get_job_status,
            reads_only=True,
        ),
        Tool(
            name="wait_for_job",
            title="Wait for a job",
            description="Wait until a job has ended (success, failed or canceled) and read its status, with progress "
            "notifications meanwhile. Ending the wait does not end the job; it can be waited for again.",
            takes=object_schema(wait, ["jobId"]),
            gives=job,
            run=Toolbox.wait_for_job,
            reads_only=True,
        ),
        Tool(
            name="cancel_job",
            title="Cancel a job",
            description="Cancel a job. One that has ended stays as it is; the answer says what its status is now.",
            takes=object_schema({"jobId": _JOB_ID}, ["jobId"]),
            gives={
                "type": "object",
                "properties": {
                    "jobId": {"type": "string"},
                    "canceled": {"type": "boolean", "description": "Whether the job is canceled now."},
                    "status": {"type": ["string", "null"]},
                    "released": {"type": ["number", "null"], "description": "Tokens that it no longer holds."},
                },
                "required": ["jobId", "canceled"],
            },
            run=Toolbox.cancel_job,
            destroys=True,
        ),
        Tool(
            name="get_token_balance",
            title="Read the token balance",
            description="Read what the account has, in tokens: available, and reserved for jobs that have not ended.",
            takes=object_schema({}),
            gives=answer_schema(TokenBalanceResponse, also={}),
            run=Toolbox.get_token_balance,
            reads_only=True,
        ),
        Tool(
            name="create_jobs_bulk",
            title="Make many jobs",
            description="Make many jobs in one call; each has an outcome of its own in the answer. With "
            "settings.dryRun it only estimates the price; settings.confirm queues the jobs at once, and without it "
            f"they cost nothing yet. {_NOTHING_TWICE} Jobs that failed are sent again in a new call with those only.",
            takes=bulk,
            gives=answer_schema(BulkCreateResponse, also=_REPLAYED),
            run=Toolbox.create_jobs_bulk,
        ),
        Tool(
            name="list_pending_operations",
            title="List what has no answer yet",
            description="List what was sent and has no answer yet, from this server's own record, for example after a "
            "crash. `pending`: call its tool again with the same arguments to get the answer; that makes no second "
            "job. `unknown`: that is too long ago, and only the user can find out whether it happened.",
            takes=object_schema({"limit": limit}),
            gives={
                "type": "object",
                "properties": {
                    "operations": {"type": "array", "items": {"type": "object"}},
                    "more": {"type": "boolean", "description": "Whether there are more than were listed."},
                },
                "required": ["operations", "more"],
            },
            run=Toolbox.list_pending_operations,
            reads_only=True,
            on_the_network=False,
        ),
    ]
