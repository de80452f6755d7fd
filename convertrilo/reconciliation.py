"""`reconcile`: find the ended jobs whose webhooks never arrived, and pass their events to the handler."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import attrs

from convertrilo._base_client import BaseClient
from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo._halving import halves
from convertrilo._tasks import run_all
from convertrilo.codec import read_answer
from convertrilo.dedupe.memory import DedupeStore, once
from convertrilo.errors import DecodeError, InvalidRequestError, NotFoundError
from convertrilo.events import logger
from convertrilo.journal import Entry, Journal
from convertrilo.models import (
    BulkCreateResponse,
    JobCreateResponse,
    OnDemandEncodeResponse,
    OnDemandFolderIngestResponse,
    OnDemandStatusResponse,
    StatusResponse,
)
from convertrilo.operations import ON_DEMAND_ENCODE, ON_DEMAND_INGEST_FOLDER, OPERATIONS
from convertrilo.receiver import Handler, call_handler
from convertrilo.webhooks import WebhookEvent

EVENTS = {"success": "job.completed", "failed": "job.failed", "canceled": "job.canceled"}
"""The webhook event for each terminal status of a job."""

_BATCH_SIZE = 100
_SINGLE_READS = 8
"""The maximum number of concurrent requests for the statuses of on-demand jobs."""
_AnswerOfOne = JobCreateResponse | OnDemandEncodeResponse
_AnswerOfMany = BulkCreateResponse | OnDemandFolderIngestResponse
_ON_DEMAND = frozenset({ON_DEMAND_ENCODE.id, ON_DEMAND_INGEST_FOLDER.id})


@attrs.frozen(kw_only=True)
class Reconciliation:
    """The result of `reconcile`, in jobs."""

    open: int
    """Jobs that have not ended yet, or that the service does not know."""
    handled: int
    """Jobs whose end the handler accepted."""
    failed: int
    """Jobs for which the handler raised an error; the next run passes them to the handler again."""


async def reconcile(
    client: BaseClient,
    journal: Journal,
    handler: Handler,
    *,
    dedupe: DedupeStore,
    within: float = 7 * 86400.0,
    clock: Clock = SYSTEM_CLOCK,
) -> Reconciliation:
    """Pass the events of ended jobs to a handler if no webhook delivered them (`bulkStatus`, `onDemandStatus`).

    Webhooks get lost when the receiver is down for longer than the service retries, or when the webhook was disabled.
    This function reads the statuses of the journal's jobs, a hundred at a time, and builds the missing event for each
    job that has ended. The event has only what the status has: `duration_sec`, `final_neu`, `user_id` and
    `failure_code` are `None`. An event that the receiver or an earlier call has handled is not handled again.

    Args:
        client: The client that reads the statuses.
        journal: The open journal that holds the jobs; a client that uses the journal keeps it open.
        handler: The receiver's handler. An error that it raises is logged and counted.
        dedupe: The receiver's open deduplication store, which remembers the events that were handled.
        within: The maximum age of a job, in seconds; not longer than `dedupe` remembers events.
        clock: The source of the current time.

    Returns:
        How many jobs are open, and for how many the handler succeeded or failed.

    Raises:
        ConvertriloError: The statuses or the journal cannot be read.
    """
    still_open = handled = failed = 0
    async for jobs in _batches(journal, datetime.fromtimestamp(clock.time() - within, UTC)):
        job_ids = await dedupe.unseen(list(jobs), EVENTS.values())
        events = [event async for event in _ends(client, job_ids, jobs, clock)]
        still_open += len(job_ids) - len(events)
        for job_id, event in events:
            try:
                handled += await once(dedupe, (job_id, event.event), partial(call_handler, handler, event), clock)
            except Exception:  # noqa: BLE001  # an error of the handler concerns only this job
                failed += 1
                logger.exception("%s of %s was not handled; the next reconciliation tries again", event.event, job_id)
    return Reconciliation(open=still_open, handled=handled, failed=failed)


async def _batches(journal: Journal, since: datetime) -> AsyncIterator[dict[str, bool]]:
    """Iterate over batches of the journal's jobs: each maps job ids to whether the job is on-demand."""
    batch: dict[str, bool] = {}
    async for entry in journal.answered():
        if entry.answered_at is None or entry.answered_at < since:
            continue
        for job_id in _job_ids(entry):
            batch[job_id] = entry.operation in _ON_DEMAND
            if len(batch) == _BATCH_SIZE:
                yield batch
                batch = {}
    if batch:
        yield batch


def _job_ids(entry: Entry) -> list[str]:
    operation = OPERATIONS.get(entry.operation)
    if operation is None or operation.returns is None or entry.answer is None:
        return []
    try:
        answer: _AnswerOfOne | _AnswerOfMany = read_answer(operation.returns, entry.answer)
    except DecodeError:  # the call that received the answer raised this error already
        return []
    items = answer.jobs or () if isinstance(answer, _AnswerOfMany) else (answer,)
    return [item.job_id for item in items if item.job_id]


async def _ends(
    client: BaseClient, job_ids: Sequence[str], jobs: Mapping[str, bool], clock: Clock
) -> AsyncIterator[tuple[str, WebhookEvent]]:
    """Iterate over the jobs that have ended, each with its event."""
    statuses = {status.id: status for status in await _read_in_bulk(client, job_ids)}
    # bulkStatus may not return on-demand jobs
    on_demand = await _read_on_demand(client, [each for each in job_ids if jobs[each] and each not in statuses])
    for job_id in job_ids:
        status = statuses.get(job_id) or on_demand.get(job_id)
        if status is not None and status.status in EVENTS:
            yield job_id, _event(job_id, status, clock)


async def _read_in_bulk(client: BaseClient, job_ids: Sequence[str]) -> list[StatusResponse]:
    if not job_ids:
        return []
    try:
        return list((await client.bulk_status(job_ids)).jobs or ())
    except InvalidRequestError:  # too many ids for one request, or an id that the service rejects
        if len(job_ids) == 1:
            return []
    return [status for half in halves(job_ids) for status in await _read_in_bulk(client, half)]


async def _read_on_demand(client: BaseClient, job_ids: Sequence[str]) -> dict[str, OnDemandStatusResponse]:
    """Read the statuses of on-demand jobs, one request per job; leave out jobs that the service does not know."""
    found: dict[str, OnDemandStatusResponse] = {}
    waiting = list(reversed(job_ids))

    async def read() -> None:
        while waiting:
            job_id = waiting.pop()
            with contextlib.suppress(NotFoundError):
                found[job_id] = await client.on_demand_status(job_id)

    await run_all([read] * min(_SINGLE_READS, len(waiting)))
    return found


def _event(job_id: str, status: StatusResponse | OnDemandStatusResponse, clock: Clock) -> WebhookEvent:
    assert status.status is not None
    return WebhookEvent(
        event=EVENTS[status.status],
        timestamp=status.finished_at or datetime.fromtimestamp(clock.time(), UTC),
        job_id=job_id,
        status=status.status,
        external_id=status.external_id,
        metadata=status.metadata,
        encoder=status.encoder,
        error=status.failure_message,
    )
